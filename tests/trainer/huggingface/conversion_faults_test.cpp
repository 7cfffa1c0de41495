// Import and export when the operating system fails or the process is killed: after any call that changes the disk
// there is nothing under the name or all of it, and the next attempt succeeds.
#include <sys/wait.h>

#include "tests/testing.h"
#include "tests/trainer/checkpoint/faulty_system.h"
#include "tests/trainer/huggingface/model_folder_testing.h"
#include "trainer/huggingface/export.h"
#include "trainer/huggingface/import.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

constexpr int64_t kMaxFileBytes = 3000;  // a few tensors each, and calls enough

class ConversionFaultsTest : public FolderTest {
 protected:
  void SetUp() override {
    FolderTest::SetUp();
    make_model_folder(tiny_model()).write(path("hf"));
    import_model(HuggingFaceReader(path("hf")), path("ckpt"), kMaxFileBytes);
  }
  void TearDown() override {
    fault = {};
    FolderTest::TearDown();
  }

  void import_again() { import_model(HuggingFaceReader(path("hf")), path("again"), kMaxFileBytes); }
  void expect_imported() {
    const CheckpointReader reader(path("again"));
    reader.verify();
    EXPECT_EQ(reader.tensors().size(), table_of(tiny_model(), false).size());
  }
  void export_again() { export_model(CheckpointReader(path("ckpt")), path("again"), std::nullopt, kMaxFileBytes); }
  void expect_exported() { EXPECT_EQ(HuggingFaceReader(path("again")).total_bytes(), total_bytes_); }

  const std::string temporary() const { return path(".tmp-again"); }
  int64_t total_bytes_ = [] {
    int64_t bytes = 0;
    for (const Parameter& p : table_of(tiny_model(), false)) bytes += p.shape.numel() * size_of(DType::kBF16);
    return bytes;
  }();

  // Runs `convert` in a process of its own that dies at its nth call.   Was there an nth call?
  bool kill_at(int64_t nth, const std::function<void()>& convert) {
    const pid_t child = fork();
    if (child == 0) {
      fault = {.nth = nth, .kills = true};
      convert();
      _exit(0);
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
  }

  void kill_at_every_call(const std::function<void()>& convert, const std::function<void()>& expect_whole) {
    int64_t nothing = 0, whole = 0;
    for (int64_t nth = 1; kill_at(nth, convert); ++nth) {
      ASSERT_LT(nth, 200);
      if (fs::exists(path("again"))) {
        expect_whole();
        ++whole;
      } else {
        ++nothing;
        convert();
        expect_whole();
      }
      EXPECT_FALSE(fs::exists(temporary()));
      fs::remove_all(path("again"));
    }
    expect_whole();
    EXPECT_GE(nothing, 15);
    EXPECT_EQ(whole, 1) << "only after the name was given, before that was made to last";
  }

  void fail_every_call(const std::function<void()>& convert, const std::function<void()>& expect_whole) {
    for (int64_t nth = 1;; ++nth) {
      ASSERT_LT(nth, 200);
      fault = {.nth = nth};
      const std::string message = message_of<IoError>(convert);
      const bool was_hit = fault.calls >= nth;
      fault = {};
      if (!was_hit) break;
      expect_contains(message, folder_);
      EXPECT_FALSE(fs::exists(path("again"))) << nth;
      EXPECT_FALSE(fs::exists(temporary())) << nth;
      convert();
      expect_whole();
      fs::remove_all(path("again"));
    }
    expect_whole();
  }
};

TEST_F(ConversionFaultsTest, AKilledImportLeavesNothingOrAll) {
  kill_at_every_call([&] { import_again(); }, [&] { expect_imported(); });
}

TEST_F(ConversionFaultsTest, AKilledExportLeavesNothingOrAll) {
  kill_at_every_call([&] { export_again(); }, [&] { expect_exported(); });
}

TEST_F(ConversionFaultsTest, AFailedImportLeavesNothing) {
  fail_every_call([&] { import_again(); }, [&] { expect_imported(); });
}

TEST_F(ConversionFaultsTest, AFailedExportLeavesNothing) {
  fail_every_call([&] { export_again(); }, [&] { expect_exported(); });
}

}  // namespace
}  // namespace braid
