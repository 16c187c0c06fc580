# An overlay port: it builds the sources it lies in.
#   vcpkg install adamas --overlay-ports=packaging/vcpkg
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if("cuda" IN_LIST FEATURES)
  # The kernels are a library of their own, looked for beside libadamas.so.
  vcpkg_check_linkage(ONLY_DYNAMIC_LIBRARY)
  set(cuda ON)
else()
  set(cuda OFF)
endif()

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS -DADAMAS_PYTHON=OFF -DADAMAS_TESTS=OFF -DADAMAS_CUDA=${cuda})
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH lib/cmake/adamas)
vcpkg_fixup_pkgconfig()
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug/include")
file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
