#include <CLI/CLI.hpp>
#include <limits>
#include <memory>

#include "trainer/cli/commands.h"
#include "trainer/cli/numbers.h"
#include "trainer/cli/print.h"
#include "trainer/cli/session.h"
#include "trainer/generation.h"

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
  command->add_option("--tokens", options->sampling.num_tokens, "tokens to add at most")->check(whole_number(1, 1 << 30));
  command->add_option("--temperature", options->sampling.temperature, "0 = always the most probable token")
      ->check(number(0, 1e6));
  command->add_option("--top-k", options->sampling.top_k, "sample among the k most probable tokens; 0 = all")
      ->check(whole_number(0));
  command->add_option("--seed", options->sampling.seed, "of the sampling")
      ->check(whole_number(0, std::numeric_limits<int64_t>::max()));
  command->callback([options, &action] {
    action = [options] {
      TextModel text(open_trained_model(options->model));
      const Tokenizer& tokenizer = *text.tokenizer;
      options->sampling.num_ids = tokenizer.vocab_size();
      const auto added = generate(text.ctx, text.state.model, tokenizer.encode(options->prompt), options->sampling,
                                  tokenizer.end_of_document());
      print_line(options->prompt, tokenizer.decode(added));
      return 0;
    };
  });
}

}  // namespace braid
