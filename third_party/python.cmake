# Python >= 3.10 (PSF licence): the interpreter and the C headers that extension modules are built
# against.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter OPTIONAL_COMPONENTS Development.Module)
if(NOT Python_Development.Module_FOUND)
  set(package python${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}-dev)
  message(
    FATAL_ERROR
      "The C headers of Python ${Python_VERSION} (Python.h) are missing. On Debian and Ubuntu:\n"
      "  apt-get install ${package}\n"
      "Elsewhere, install the package that has them.")
endif()
