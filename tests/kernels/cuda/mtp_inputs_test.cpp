#include "kernels/mtp_inputs.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class MtpInputsCuda : public CudaTest {};
BRAID_FOR_EACH_ACTIVATION(MtpInputsCuda);

TEST_P(MtpInputsCuda, ForwardAndBackward) {
  for (const auto& [N, C] : {std::pair<int64_t, int64_t>{1, 2048}, {50, 2048}, {90, 24}, {40, 33}}) {
    SCOPED_TRACE(std::to_string(N) + " x " + std::to_string(C));
    const Tensor embedding = rounded(random_f64({N, C}, 1)), hidden = rounded(random_f64({N, C}, 2));
    const Tensor d_joined = rounded(random_f64({N, 2 * C}, 3)), start = random_f64({C}, 4);
    const Tensor d_hidden_start = rounded(random_f64({N, C}, 5));
    const MtpInputWeights weights = {random_f64({C}, 6, 0.3), random_f64({C}, 7, 0.3)};
    MtpInputs out = {zeros_f64({N, 2 * C}), zeros_f64({N}), zeros_f64({N})};
    Tensor d_embedding = zeros_f64({N, C}), d_hidden = copy_of(d_hidden_start);
    MtpInputWeights d_weights = {copy_of(start), copy_of(start)};
    mtp_inputs_forward(cpu, out, embedding, hidden, weights, 1e-6);
    mtp_inputs_backward(cpu, d_embedding, d_hidden, d_weights, d_joined, embedding, hidden, out, weights);

    const Tensor gpu_embedding = to_gpu(embedding, activation()), gpu_hidden = to_gpu(hidden, activation());
    const MtpInputWeights gpu_weights = {to_gpu(weights.embedding_norm, wide()), to_gpu(weights.hidden_norm, wide())};
    MtpInputs gpu_out = {on_gpu({N, 2 * C}, activation()), on_gpu({N}, wide()), on_gpu({N}, wide())};
    mtp_inputs_forward(gpu, gpu_out, gpu_embedding, gpu_hidden, gpu_weights, 1e-6);
    expect_matches(gpu_out.joined, out.joined, "joined");
    expect_matches(gpu_out.embedding_rstd, out.embedding_rstd, "embedding_rstd", tolerance_of(DType::kF32));
    expect_matches(gpu_out.hidden_rstd, out.hidden_rstd, "hidden_rstd", tolerance_of(DType::kF32));

    Tensor gpu_d_embedding = on_gpu({N, C}, activation()), gpu_d_hidden = to_gpu(d_hidden_start, activation());
    MtpInputWeights gpu_d_weights = {to_gpu(start, wide()), to_gpu(start, wide())};
    mtp_inputs_backward(gpu, gpu_d_embedding, gpu_d_hidden, gpu_d_weights, to_gpu(d_joined, activation()),
                        gpu_embedding, gpu_hidden, gpu_out, gpu_weights);
    expect_matches(gpu_d_embedding, d_embedding, "d_embedding");
    expect_matches(gpu_d_hidden, d_hidden, "d_hidden");
    expect_matches(gpu_d_weights.embedding_norm, d_weights.embedding_norm, "d_embedding_norm",
                   tolerance_of(DType::kF32));
    expect_matches(gpu_d_weights.hidden_norm, d_weights.hidden_norm, "d_hidden_norm", tolerance_of(DType::kF32));
  }
}

}  // namespace
}  // namespace braid
