#include "trainer/weight_source.h"

namespace braid {

void load_weights(const WeightSource& source, const ParameterLayout& layout, Tensor dense, Tensor expert) {
  for (const FlatGroup* group : {&layout.dense(), &layout.expert()}) {
    Tensor& flat = group->owner == Owner::kExpertRank ? expert : dense;
    for (const FlatParameter& p : group->parameters)
      source.read_weights(p.parameter, p.global_first, p.global_first + p.local_numel,
                          flat.rows(p.offset, p.offset + p.local_numel));
  }
}

}  // namespace braid
