#pragma once

#include <string>
#include <vector>

namespace braid {

// Refuses norm weights that evidently lie around the wrong number. A zero-centred norm multiplies by 1 + w, a plain one
// by w, and both come with the same name and shape, so a converter that mixes them up leaves a model that loads and is
// wrong.
//
// Trained weights do not stay at their initial value: those of zero-centred norms lie roughly within (-0.5, 1.5), and a
// single one (q_norm, k_norm, the last norm) may lie well above. What tells the two apart is that the multiplier of a
// channel practically never turns negative:
//   stored plainly      nearly all weights are positive, with their median near 1;
//   stored around zero  a good part of them is negative or zero, with their median near 0.
// So the weights of all norms of a kind are judged together, by their median and the share of those <= 0:
//   zero_centred  refused if the median is within [0.75, 1.25] and the share is below 5 %;
//   gated         (linear_attn.norm, a plain one) refused if the median is within [-0.25, 0.25] and the share is not.
// Everything else is accepted. That refuses a good model only if its zero-centred norms multiply nearly every channel
// of every layer by more than 1 and typically by 2, or its plain ones by nearly nothing with either sign.
// Weights that are not finite do not count; either list may be empty.
// Errors: CheckpointError with the folder and what was found.
void check_norm_centring(const std::string& folder, std::vector<double> zero_centred, std::vector<double> gated);

}  // namespace braid
