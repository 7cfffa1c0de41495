# oneDNN makes the larger fp32 products on x86-64, with the kernels that the CPU at run time can use; elsewhere, and without it,
# Braid's own do (kernels/cpu/register_gemm.h). Sets BRAID_WITH_ONEDNN and
# makes the target braid_onednn.
set(BRAID_ONEDNN AUTO CACHE STRING "Use oneDNN: AUTO (on x86-64, if it is found), ON, OFF")
set_property(CACHE BRAID_ONEDNN PROPERTY STRINGS AUTO ON OFF)
set(BRAID_WITH_ONEDNN OFF)
# On other CPUs most builds of oneDNN have no fast products of plain matrices.
if(BRAID_ONEDNN STREQUAL "ON" OR (BRAID_ONEDNN STREQUAL "AUTO" AND CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64"))
  find_path(BRAID_ONEDNN_INCLUDE_DIR oneapi/dnnl/dnnl.h)
  find_library(BRAID_ONEDNN_LIBRARY dnnl)
  if(BRAID_ONEDNN_INCLUDE_DIR AND BRAID_ONEDNN_LIBRARY)
    set(BRAID_WITH_ONEDNN ON)
    add_library(braid_onednn INTERFACE)
    target_include_directories(braid_onednn SYSTEM INTERFACE ${BRAID_ONEDNN_INCLUDE_DIR})
    target_link_libraries(braid_onednn INTERFACE ${BRAID_ONEDNN_LIBRARY})
  elseif(BRAID_ONEDNN STREQUAL "ON")
    message(FATAL_ERROR "BRAID_ONEDNN=ON, but something is missing: oneapi/dnnl/dnnl.h (${BRAID_ONEDNN_INCLUDE_DIR}), "
                        "libdnnl (${BRAID_ONEDNN_LIBRARY}); on Debian and Ubuntu: libdnnl-dev")
  else()
    message(STATUS "oneDNN (libdnnl-dev) was not found: products on the CPU run in Braid's own kernels, which are slower")
  endif()
endif()
