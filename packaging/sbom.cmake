# The wheel's bill of materials (PEP 770: .dist-info/sboms, CycloneDX 1.7), written by the build that
# puts the parts in, and so with their true versions.  Included by CMakeLists.txt for wheels.

if(NOT SKBUILD_METADATA_DIR)
  message(FATAL_ERROR "SKBUILD_METADATA_DIR is not set: scikit-build-core >= 0.11 sets it")
endif()

# Variables of those folders that have found the parts.
get_directory_property(pybind11_version DIRECTORY csrc/bindings DEFINITION pybind11_VERSION)
get_directory_property(python_version DIRECTORY csrc/bindings DEFINITION Python_VERSION)
set(cuda_component "")
set(cuda_reference "")
if(TARGET adamas_cuda)
  get_directory_property(nvcc_version DIRECTORY csrc/cuda DEFINITION CMAKE_CUDA_COMPILER_VERSION)
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" cuda_version "${nvcc_version}")
  file(READ ${CMAKE_CURRENT_LIST_DIR}/sbom_cuda.json.in cuda_component)
  string(CONFIGURE "${cuda_component}" cuda_component @ONLY)
  set(cuda_reference ", \"cuda-runtime\"")
endif()
set(compiler "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
configure_file(${CMAKE_CURRENT_LIST_DIR}/sbom.json.in ${PROJECT_BINARY_DIR}/adamas.cdx.json @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/adamas.cdx.json DESTINATION ${SKBUILD_METADATA_DIR}/sboms)
