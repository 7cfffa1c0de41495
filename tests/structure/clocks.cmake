# Clocks that people set jump: how long something took, and what waits for how long, is counted by std::chrono::steady_clock.
# What time it is may be read where it is written down for people, here, and nowhere else.   cmake -DSOURCE=… -P clocks.cmake
cmake_minimum_required(VERSION 3.25)
set(may_know_the_time
  kernels/core/process_info.cpp          # utc_now
  trainer/bench/operator_bench.cpp       # the date of a table
  trainer/cli/doctor.cpp                 # how far the clocks of hosts are apart
  trainer/metrics/tensorboard_writer.cpp # the wall time of a line
)
set(clocks "system_clock|high_resolution_clock|gettimeofday|CLOCK_REALTIME|std::time\\(|[^_a-z:]time\\((nullptr|NULL|0)\\)")
set(files 0)
set(readers "")
foreach(folder kernels parallel data model trainer)
  file(GLOB_RECURSE paths RELATIVE ${SOURCE} ${SOURCE}/${folder}/*.h ${SOURCE}/${folder}/*.cpp ${SOURCE}/${folder}/*.cu)
  foreach(path ${paths})
    math(EXPR files "${files} + 1")
    file(STRINGS ${SOURCE}/${path} found REGEX "${clocks}")
    if(found)
      list(APPEND readers ${path})
      if(NOT path IN_LIST may_know_the_time)
        message(SEND_ERROR "${path} reads a clock that jumps: ${found}")
      endif()
    endif()
  endforeach()
endforeach()
foreach(path ${may_know_the_time})
  if(NOT path IN_LIST readers)
    message(SEND_ERROR "${path} reads no such clock any more: take it off the list")
  endif()
endforeach()
if(files LESS 100)
  message(FATAL_ERROR "only ${files} files found under ${SOURCE}: the check reads the wrong folder")
endif()
message(STATUS "${files} files")
