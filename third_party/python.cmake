# Python >= 3.10 (PSF licence): the interpreter and the C headers that extension modules are built
# against.
#
# Debian's python3-venv brings an interpreter without its headers, which are in libpython3.x-dev.
# If they are missing where apt-get is at hand, that package is downloaded and unpacked into the
# build folder: nothing is installed and no rights are needed.
if(NOT Python_INCLUDE_DIR OR NOT EXISTS "${Python_INCLUDE_DIR}/Python.h")
  unset(Python_INCLUDE_DIR CACHE)
  unset(Python_INCLUDE_DIR)
endif()
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter OPTIONAL_COMPONENTS Development.Module)

if(NOT Python_Development.Module_FOUND)
  find_program(APT_GET apt-get)
  find_program(DPKG dpkg)
  set(package "libpython${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}-dev")
  set(unpacked "${CMAKE_BINARY_DIR}/${package}")
  if(APT_GET AND DPKG AND NOT EXISTS "${unpacked}")
    message(STATUS "Python.h is missing; taking it from Debian's package ${package}")
    file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/deb")
    execute_process(
      COMMAND "${APT_GET}" download "${package}" WORKING_DIRECTORY "${CMAKE_BINARY_DIR}/deb")
    file(GLOB archive "${CMAKE_BINARY_DIR}/deb/${package}_*.deb")
    if(archive)
      execute_process(COMMAND "${DPKG}" -x "${archive}" "${unpacked}")
    endif()
  endif()
  set(Python_INCLUDE_DIR
      "${unpacked}/usr/include/python${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}")
  if(NOT EXISTS "${Python_INCLUDE_DIR}/Python.h")
    message(FATAL_ERROR "The C headers of Python ${Python_VERSION} (Python.h) are missing; on "
                        "Debian and Ubuntu install ${package}, elsewhere the package that has them")
  endif()
  # pyconfig.h refers to its machine's copy from the folder above.
  include_directories(SYSTEM "${unpacked}/usr/include")
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
endif()
