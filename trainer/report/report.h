#pragma once

#include <string>
#include <vector>

#include "trainer/report/run_data.h"

namespace braid {

// One HTML file that needs nothing else, below kMostReportBytes: loss curves by tokens and by time, raw and smoothed,
// differences from the first run with their statistics, differing config keys, throughput, expert loads over time and
// events. It has light and dark colours, fits a phone and is read without colour. `introduction` is HTML that is put
// below the title.
inline constexpr size_t kMostReportBytes = 2'000'000;
std::string report_as_html(const std::vector<RunData>& runs, const std::string& title,
                           const std::string& introduction = "");

// run,step,tokens,seconds,train_loss,grad_norm,lr,tokens_per_s,val_<set>…: a row per step of every run; what is not
// there is an empty cell.
std::string report_as_csv(const std::vector<RunData>& runs);

}  // namespace braid
