# pybind11 >= 3.0 (BSD-3-Clause): binds the C++ core to Python; needed at build time only.
# Found where pip put it: the build system adds its folder to CMAKE_PREFIX_PATH.
find_package(pybind11 3.0 CONFIG REQUIRED)
