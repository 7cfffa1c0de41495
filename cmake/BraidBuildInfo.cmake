# kernels/build_info.h with the version and the commit, as they are when CMake configures.
find_package(Git QUIET)
set(BRAID_COMMIT "unknown")
if(GIT_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} -C ${PROJECT_SOURCE_DIR} describe --always --dirty --abbrev=12
    OUTPUT_VARIABLE BRAID_GIT_OUTPUT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE BRAID_GIT_RESULT)
  if(BRAID_GIT_RESULT EQUAL 0)
    set(BRAID_COMMIT ${BRAID_GIT_OUTPUT})
  endif()
endif()
set(BRAID_BUILD_ID
  "${PROJECT_VERSION}+${BRAID_COMMIT} ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} ${CMAKE_BUILD_TYPE}")
configure_file(${CMAKE_CURRENT_LIST_DIR}/build_info.h.in ${PROJECT_BINARY_DIR}/kernels/build_info.h @ONLY)
