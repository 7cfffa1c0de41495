#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "data/tokenizer/tokenizer.h"
#include "kernels/core/error.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/session.h"
#include "trainer/generation.h"
#include "trainer/run_tokenizer.h"
#include "trainer/training_state.h"

namespace braid {

void add_generate_command(CLI::App& app, Action& action) {
  struct Options {
    std::string model, prompt = "\n";
    SamplingConfig sampling;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "Continue a text with a trained model");
  command->add_option("model", options->model, "run folder or checkpoint folder")->required();
  command->add_option("--prompt", options->prompt, "text to continue");
  command->add_option("--tokens", options->sampling.num_tokens, "tokens to add at most")->check(CLI::Range(1, 1 << 30));
  command->add_option("--temperature", options->sampling.temperature, "0 = always the most probable token")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--top-k", options->sampling.top_k, "sample among the k most probable tokens; 0 = all")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--seed", options->sampling.seed, "of the sampling");
  command->callback([options, &action] {
    action = [options] {
      TrainedModel trained = open_trained_model(options->model);
      RunConfig& config = trained.config;
      use_default_threads();
      // Token by token the CPU serves best; what was trained in bf16 has its weights in fp32.
      Context ctx = Context::cpu();
      if (config.precision == Precision::kBf16) config.precision = Precision::kFp32;
      config.mtp.depth = 0;
      const ProcessMesh mesh(make_local_communicator(), 1, config.model.num_experts);
      InferenceState state(ctx, config, mesh, 1, 1);
      state.load(ctx, trained.reader);

      const auto tokenizer = run_tokenizer(trained.reader.path());
      check<DataError>(tokenizer->vocab_size() <= config.model.vocab_size, "the run's tokenizer has ", tokenizer->vocab_size(),
                       " ids, more than model.vocab_size ", config.model.vocab_size);
      const std::vector<uint32_t> prompt = tokenizer->encode(options->prompt);
      const auto added = generate(ctx, state.model, prompt, options->sampling, tokenizer->end_of_document());
      std::printf("%s%s\n", options->prompt.c_str(), tokenizer->decode(added).c_str());
      return 0;
    };
  });
}

}  // namespace braid
