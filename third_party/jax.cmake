# The headers of XLA's foreign function interface (Apache-2.0), which jaxlib >= 0.4.35 carries: what
# adamas.jax is compiled against.  Nothing is linked: at run time JAX calls through a C ABI that is
# stable.  Headers older than the jaxlib of the run time serve, newer ones may not.
#
# Sets ADAMAS_JAX_INCLUDE_DIR, and `jax_reason` to why there are none, or to nothing.
set(ADAMAS_JAX_INCLUDE_DIR "" CACHE PATH "The folder of xla/ffi/api/ffi.h: jax.ffi.include_dir()")
set(jax_header xla/ffi/api/ffi.h)
set(jax_include_dir ${ADAMAS_JAX_INCLUDE_DIR})
if(NOT jax_include_dir) # asked for each time: another environment may build next
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import importlib.util as u, pathlib as p
print(p.Path(u.find_spec('jaxlib').origin).parent / 'include', end='')"
    OUTPUT_VARIABLE jax_include_dir
    ERROR_QUIET)
endif()
set(jax_reason "")
if(NOT jax_include_dir)
  set(jax_reason "it was built where there was no jaxlib")
elseif(NOT EXISTS ${jax_include_dir}/${jax_header})
  set(jax_reason "there was no ${jax_header} in ${jax_include_dir} when it was built")
endif()
