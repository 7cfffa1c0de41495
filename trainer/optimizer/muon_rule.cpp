#include "trainer/optimizer/muon_rule.h"

#include "kernels/muon.h"

namespace braid {

bool MuonRule::takes(const Parameter& p) {
  const int rank = p.shape.rank();
  if (rank < 2 || p.shape[rank - 2] == 1 || p.shape[rank - 1] == 1) return false;
  return p.name != "model.embed_tokens.weight" && p.name != "lm_head.weight";
}

std::vector<StoredMoment> MuonRule::moments(const FlatGroup&, DType master) const {
  return {{"momentum", config_.moment_dtype == MomentDType::kBf16 ? DType::kBF16 : master}};
}

void MuonRule::update(Context& ctx, const UpdatedPiece& piece, const UpdateStep& step) const {
  const Parameter& p = piece.parameter;
  const int64_t rows = p.shape[p.shape.rank() - 2], C = p.shape[p.shape.rank() - 1], G = p.packed.groups;
  std::vector<int64_t> sections = p.packed.sections;
  if (sections.empty()) sections = {rows / G};
  const Tensor momentum = piece.moments[0];
  assert(piece.weight.numel() % (rows * C) == 0);
  for (int64_t first = 0; first < piece.weight.numel(); first += rows * C) {
    auto matrix = [&](const Tensor& flat) { return flat.rows(first, first + rows * C).view({G, rows / G, C}); };
    const Tensor low =
        piece.low.defined() ? piece.low.rows(first, first + rows * C).view({G, rows / G, C, 2}) : Tensor();
    int64_t begin = 0;
    for (const int64_t section : sections) {
      muon_update(ctx, {matrix(piece.weight), matrix(momentum), low}, matrix(piece.gradient), {begin, begin + section},
                  {.lr = step.lr,
                   .momentum = config_.muon_momentum,
                   .update_rms = config_.muon_update_rms,
                   .weight_decay = weight_decay_of(p, config_),
                   .gradient_scale = step.gradient_scale,
                   .products = piece.weight.dtype()});
      begin += section;
    }
  }
}

}  // namespace braid
