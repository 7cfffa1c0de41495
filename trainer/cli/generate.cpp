#include <limits>
#include <memory>

#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"
#include "trainer/cli/session.h"
#include "trainer/generation.h"

namespace braid {

void add_generate_command(Command app) {
  struct Options {
    std::string model, prompt = "\n";
    SamplingConfig sampling;
  };
  auto options = std::make_shared<Options>();
  const Command command = app.command("generate", "Continue a text with a trained model");
  command.option("model", options->model, "run folder or checkpoint folder").required();
  command.option("--prompt", options->prompt, "text to continue");
  command.option("--tokens", options->sampling.num_tokens, "tokens to add at most").whole(1, 1 << 30);
  command.option("--temperature", options->sampling.temperature, "0 = always the most probable token").number(0, 1e6);
  command.option("--top-k", options->sampling.top_k, "sample among the k most probable tokens; 0 = all").whole(0);
  command.option("--seed", options->sampling.seed, "of the sampling").whole(0, std::numeric_limits<int64_t>::max());
  command.runs([options] {
    TextModel text(open_trained_model(options->model));
    const Tokenizer& tokenizer = *text.tokenizer;
    options->sampling.num_ids = tokenizer.vocab_size();
    const auto added = generate(text.ctx, text.state.model, tokenizer.encode(options->prompt), options->sampling,
                                tokenizer.end_of_document());
    print_line(options->prompt, tokenizer.decode(added));
    return 0;
  });
}

}  // namespace braid
