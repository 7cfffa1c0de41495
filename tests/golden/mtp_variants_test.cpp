#include <filesystem>

#include "tests/trainer/parity/reference_writer.h"
#include "trainer/parity/parity.h"
#include "trainer/parity/reference_file.h"

namespace braid {
namespace {

using namespace braid::testing;

// A wrong MTP block never looks broken, only less accurate. The two mistakes that loaders make, the hidden state in
// front of the embedding and the hidden state before the final norm, must be far from what Braid computes, which the
// parity test of the same folder holds to its reference.
class MtpVariants : public FolderTest {
 protected:
  static Tensor read(const ReferenceFile& file, const std::string& name) {
    const SafetensorsEntry& entry = file.entries().at(name);
    Shape shape;
    for (int64_t dim : entry.shape) shape.append(dim);
    Tensor tensor = zeros(shape, entry.dtype);
    file.read(name, 0, tensor);
    return tensor;
  }
};

TEST_F(MtpVariants, AreFarFromTheDefinition) {
  Context ctx = Context::cpu();
  int64_t variants = 0;
  for (const auto& folder : std::filesystem::directory_iterator(moved("BRAID_GOLDEN", BRAID_GOLDEN_FOLDER))) {
    const std::string file = (folder.path() / "mtp_variants.safetensors").string();
    if (!std::filesystem::exists(file)) continue;
    const ReferenceFile variant_file(file), reference((folder.path() / "reference.safetensors").string());
    for (const std::string name : {"mtp_logits.hidden_first", "mtp_logits.pre_norm"}) {
      const ReferenceContent content = {{{"input_ids", read(reference, "input_ids")},
                                         {"logits", read(reference, "logits")},
                                         {"mtp_logits", read(variant_file, name)}},
                                        {}};
      content.write(path("variant.safetensors"));
      const ParityReport report =
          check_forward(ctx, {.model = folder.path().string(), .reference = path("variant.safetensors")});
      ASSERT_EQ(report.tensors.size(), 2) << "logits and mtp_logits";
      EXPECT_TRUE(report.tensors[0].passed) << folder.path();
      EXPECT_GT(report.tensors[1].relative_rms, 0.01) << folder.path() << " " << name;
      ++variants;
    }
  }
  EXPECT_GT(variants, 0);
}

}  // namespace
}  // namespace braid
