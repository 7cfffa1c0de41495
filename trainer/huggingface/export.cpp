#include "trainer/huggingface/export.h"

#include "trainer/config/config_reader.h"

namespace braid {
namespace {

// The dtype to write a parameter in: `wanted`, else the one it is stored in.
DType exported_dtype(const CheckpointReader& source, const Parameter& parameter, std::optional<DType> wanted) {
  const std::string name = weights_name(parameter);
  const CheckpointReader::LogicalTensor* stored = source.find(name);
  check<CheckpointError>(stored != nullptr, source.path(), ": holds no tensor ", name);
  if (wanted) return *wanted;
  const bool fits = stored->dtype == DType::kF32 || stored->dtype == DType::kBF16;
  check<CheckpointError>(fits, source.path(), ": tensor ", name, " is ", name_of(stored->dtype),
                         ", which a Hugging Face folder does not hold: choose --dtype bf16 or fp32");
  return stored->dtype;
}

}  // namespace

void export_model(const CheckpointReader& source, const std::string& folder, std::optional<DType> dtype,
                  int64_t max_file_bytes) {
  const RunConfig config = read_config_text(source.info().config_yaml, source.path());
  std::vector<TypedParameter> parameters;
  for (const Parameter& p : parameter_table(config.model, config.mtp))
    parameters.push_back({p, exported_dtype(source, p, dtype)});
  write_model_folder(source, config.model, parameters, folder, max_file_bytes);
}

}  // namespace braid
