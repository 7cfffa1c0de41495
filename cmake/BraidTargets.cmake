# One library per folder, static unless BUILD_SHARED_LIBS says otherwise (scripts/bundle.sh does, so that its many programs
# share one copy of the kernels). No global flags: what every target of ours needs is on `braid_options`.
add_library(braid_options INTERFACE)
target_compile_features(braid_options INTERFACE cxx_std_20)
target_include_directories(braid_options INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
target_compile_options(braid_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-missing-field-initializers -fno-math-errno -fno-trapping-math>)
target_compile_options(braid_options INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
if(BRAID_NATIVE)
  target_compile_options(braid_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
elseif(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  target_compile_options(braid_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=x86-64-v3>)
endif()
if(BUILD_SHARED_LIBS)  # nobody replaces our functions from outside, so they may be inlined as in a static library
  target_compile_options(braid_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fno-semantic-interposition>)
endif()
if(BRAID_SANITIZE)
  target_compile_options(braid_options INTERFACE -fsanitize=${BRAID_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(braid_options INTERFACE -fsanitize=${BRAID_SANITIZE})
  # GCC 13 keeps the variables of functions outside the stack to see their use after the return, but not where 64 bytes at once
  # (AVX-512) need them: it writes there all the same. GCC 12 does not by itself, GCC 14 aligns them.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
    target_compile_options(braid_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:--param=asan-use-after-return=0>)
  endif()
endif()

# braid_library(kernels SOURCES a.cpp … LINK other …)
function(braid_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK;PRIVATE_LINK" ${ARGN})
  add_library(braid_${name} ${ARG_SOURCES})
  target_link_libraries(braid_${name} PUBLIC braid_options ${ARG_LINK} PRIVATE ${ARG_PRIVATE_LINK})
endfunction()

# Standard headers are compiled once, not for every file: braid_compiled_headers(target <vector> …), or (target REUSE_FROM other)
# where both have the same flags. Not with a compiler cache, where trees share objects that may not depend on a tree's own
# compiled headers, nor in shared libraries, whose flags differ; such builds see to it that every file includes what it uses.
if(CMAKE_CXX_COMPILER_LAUNCHER OR BUILD_SHARED_LIBS)
  set(compiled_headers OFF)
else()
  set(compiled_headers ON)
endif()
option(BRAID_COMPILED_HEADERS "Compile standard headers once for all files of a target" ${compiled_headers})
function(braid_compiled_headers target)
  if(BRAID_COMPILED_HEADERS AND ARGV1 STREQUAL "REUSE_FROM")
    target_precompile_headers(${target} REUSE_FROM ${ARGV2})
  elseif(BRAID_COMPILED_HEADERS)
    target_precompile_headers(${target} PRIVATE ${ARGN})
  endif()
endfunction()
