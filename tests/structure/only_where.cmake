# What may be used in a few places alone, each with its reason here, and nowhere else.   cmake -DSOURCE=… -DRULE=… -P only_where.cmake
# clocks: clocks that people set jump: how long something took, and what waits for how long, is counted by std::chrono::steady_clock.
#   What time it is may be read where it is written down for people.
# streams: a plain stream keeps to itself that memory was refused or a read failed, and its text ends there. Loud<> throws.
cmake_minimum_required(VERSION 3.25)
if(RULE STREQUAL clocks)
  set(words "system_clock|high_resolution_clock|gettimeofday|CLOCK_REALTIME|std::time\\(|[^_a-z:]time\\((nullptr|NULL|0)\\)")
  set(allowed
    kernels/core/process_info.cpp          # utc_now
    trainer/bench/operator_bench.cpp       # the date of a table
    trainer/cli/doctor.cpp                 # how far the clocks of hosts are apart
    trainer/metrics/tensorboard_writer.cpp # the wall time of a line
  )
elseif(RULE STREQUAL streams)
  set(words "(^|[^<])std::[io]?(f|string)stream")
  set(allowed
    kernels/core/file_text.h               # reads without the stream's own functions
    trainer/run/error_record.cpp           # the process ends, whether or not its record can be written
  )
else()
  message(FATAL_ERROR "there is no rule '${RULE}'")
endif()
set(files 0)
set(users "")
foreach(folder kernels parallel data model trainer)
  file(GLOB_RECURSE paths RELATIVE ${SOURCE} ${SOURCE}/${folder}/*.h ${SOURCE}/${folder}/*.cpp ${SOURCE}/${folder}/*.cu)
  foreach(path ${paths})
    math(EXPR files "${files} + 1")
    file(STRINGS ${SOURCE}/${path} found REGEX "${words}")
    if(found)
      list(APPEND users ${path})
      if(NOT path IN_LIST allowed)
        message(SEND_ERROR "${RULE}: not in ${path}: ${found}")
      endif()
    endif()
  endforeach()
endforeach()
foreach(path ${allowed})
  if(NOT path IN_LIST users)
    message(SEND_ERROR "${RULE}: ${path} has none any more: take it off the list")
  endif()
endforeach()
if(files LESS 100)
  message(FATAL_ERROR "only ${files} files found under ${SOURCE}: the check reads the wrong folder")
endif()
message(STATUS "${files} files")
