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
endif()

# braid_library(kernels SOURCES a.cpp … LINK other …)
function(braid_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK;PRIVATE_LINK" ${ARGN})
  add_library(braid_${name} ${ARG_SOURCES})
  target_link_libraries(braid_${name} PUBLIC braid_options ${ARG_LINK} PRIVATE ${ARG_PRIVATE_LINK})
endfunction()
