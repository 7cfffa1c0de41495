#include "kernels/core/turn_times.h"

#include "kernels/core/copy.h"
#include "kernels/cuda/gpu.h"

namespace braid::cuda {
namespace {

class Event {
 public:
  Event() { check_cuda(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) { check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  double ms_until(const Event& later) const {
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, event_, later.event_), "cudaEventElapsedTime");
    return ms;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// What `body` enqueues on the stream, recorded and not run.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& body) {
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    body();
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    const cudaError_t result = cudaGraphInstantiate(&graph_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(result, "cudaGraphInstantiate");
    check_cuda(cudaGraphUpload(graph_, stream), "cudaGraphUpload");
  }
  ~Graph() { cudaGraphExecDestroy(graph_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch(cudaStream_t stream) { check_cuda(cudaGraphLaunch(graph_, stream), "cudaGraphLaunch"); }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace

std::vector<double> turn_times_ms(Context& ctx, int num_turns, Launch launch, Tensor head_start,
                                  const std::function<void(int turn)>& body) {
  cudaStream_t stream = stream_of(ctx);
  std::vector<Event> events(static_cast<size_t>(num_turns) + 1);
  std::vector<std::unique_ptr<Graph>> graphs;
  if (launch == Launch::kGraph)
    for (int turn = 0; turn < num_turns; ++turn) graphs.push_back(std::make_unique<Graph>(stream, [&] { body(turn); }));
  fill_zero(ctx, head_start);
  events[0].record(stream);
  for (int turn = 0; turn < num_turns; ++turn) {
    if (launch == Launch::kGraph) graphs[turn]->launch(stream);
    else body(turn);
    events[turn + 1].record(stream);
  }
  ctx.synchronize();
  std::vector<double> times;
  for (int turn = 0; turn < num_turns; ++turn) times.push_back(events[turn].ms_until(events[turn + 1]));
  return times;
}

}  // namespace braid::cuda
