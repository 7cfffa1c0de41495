#include "tests/testing.h"

#include <omp.h>

namespace braid::testing {

void expect_same_bits_for_every_thread_count(const std::function<std::vector<Tensor>()>& body) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::vector<Tensor> expected = body();
  for (int threads : {2, 3, 5}) {
    omp_set_num_threads(threads);
    const std::vector<Tensor> actual = body();
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) expect_same_bits(actual[i], expected[i], "thread count");
  }
  omp_set_num_threads(before);
}

}  // namespace braid::testing
