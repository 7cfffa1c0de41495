#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "model/parameter_layout.h"
#include "parallel/communicator.h"

namespace braid {

// Where weights come from: their initial distribution, a checkpoint or a Hugging Face folder.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual const std::string& path() const = 0;  // how messages call it
  // The shape in which it holds what this parameter is called; none if it holds nothing of that name.
  virtual std::optional<Shape> stored_shape(const Parameter& parameter) const { return parameter.shape; }
  // Fills `out`, in host memory, with elements [begin, end) of a parameter in row-major order, converted to out's dtype
  // (F64, F32, or BF16 by round-to-nearest-even).   Errors: CheckpointError if the source does not hold the parameter
  // in this shape.
  virtual void read_weights(const Parameter& parameter, int64_t begin, int64_t end, Tensor out) const = 0;
  // The same into the memory of a GPU; false if the source can only do it by way of the host.
  virtual bool make_on_gpu(Context&, const Parameter&, int64_t /*begin*/, Tensor /*out*/) const { return false; }
  // Called by all ranks that read it together, each its part, before what was read since the last call is used.
  // Errors: CheckpointError, on all of them.
  virtual void settle(Context&, Communicator& /*world*/) const {}
  virtual int64_t bytes_read() const { return 0; }  // from its files until now, by this rank
};

// Fills elements [begin, end) of a flat buffer that lie in parameter p, on any device; `out` has as many, and so has
// `low`, where bf16 weights keep the low bits of their masters (see kernels/split_weights.h). bf16 weights alone are
// the same bits.
void load_elements(Context& ctx, const WeightSource& source, const FlatParameter& p, int64_t begin, int64_t end,
                   Tensor out, Tensor low = {});

// Fills the flat weight buffers of a layout, padding aside.
void load_weights(Context& ctx, const WeightSource& source, const ParameterLayout& layout, std::vector<Tensor>& flat);

}  // namespace braid
