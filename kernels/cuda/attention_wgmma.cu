#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cub/block/block_scan.cuh>

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/hopper.cuh"

// Backward of attention on Hopper, for heads of up to 256, whole rows and packed documents alike.
//
// Documents are cut into tiles of 64 tokens. One kernel owns tiles of keys and walks over the tiles of queries that see
// them: it forms the probabilities P and their gradients dS, sums up d_k and d_v, and leaves dS behind. A second one
// owns tiles of queries and sums up d_q = dS K. So every product is formed once, 5 in all, every sum has one owner and
// one order, and a document gives the same bits wherever it lies. dS would be T x T: the tiles of queries are worked
// off in stripes whose dS fits most_score_bytes; a document that a border of stripes cuts keeps its sums of d_k and
// d_v, as they are, in device memory from one stripe to the next.
namespace braid::cuda {
namespace {

constexpr int kTile = Segments::kChunkTokens;  // tokens of a tile, lines of a block
static_assert(kTile == 64);
constexpr int kDh = 256, kBlocks = kDh / kLine;
constexpr int kBlockBytes = kTile * 128, kPanelBytes = kBlocks * kBlockBytes;  // 64 tokens x 64 and x kDh numbers
constexpr int kSquareElements = kTile * kTile;

// ---- What there is to do --------------------------------------------------------------------------------------------

// Of keys, and of their queries where there are such: the keys of a document that come before its row have none here.
struct Tile {
  int begin, tokens;          // of keys
  int query;                  // the first of its queries; -1: it has none
  int first, own_first, end;  // tiles [first, end) are those of its document, of which those from own_first on have
                              // queries
  __device__ __forceinline__ bool has_queries() const { return query >= 0; }
};
// The tiles [begin, end), whose queries it has, the tiles of keys from first_key on that they see, and the slots of dS
// before them.
struct Stripe {
  int begin, end, first_key, slot;
};
// slots[c] is the place of dS of tile c and its document's first tile of keys; those of the following tiles follow.
struct Tables {
  Tile* tiles;
  int* slots;
  Stripe* stripes;
  int* keys;       // (stripes, max_tiles): the tiles of keys of a stripe, those with the most queries first
  int* next_jobs;  // (stripes): how many of them have been asked for
  int max_tiles, num_stripes, stripe_slots;
};

// Of the stripe's tiles of queries, how many see the keys of this tile?
__device__ __forceinline__ int num_queries(const Stripe& stripe, int key, const Tile& tile) {
  return min(tile.end, stripe.end) - max(max(key, stripe.begin), tile.own_first);
}

// Of the keys that come before a row.
__device__ __forceinline__ int num_tiles_before(const Documents& documents, int row) {
  if (!documents.key_shift) return 0;
  return (documents.key_shift[row + 1] - documents.key_shift[row] + kTile - 1) / kTile;
}

constexpr int kTableThreads = 1024;
constexpr int kSizes = 8;  // of the work at a tile of keys, in powers of two of tiles of queries; the last has no bound

// One block: finds the tiles, shares them out to stripes, and brings each stripe's keys into the order in which blocks
// take them: large ones first, so that all blocks end at about the same time, and those of about the same size document
// by document, so that blocks at work at one time read the same queries.
__global__ void __launch_bounds__(kTableThreads)
    tables_kernel(Tables tables, Documents documents, const int32_t* first_chunk, const int32_t* chunk_begin, int N) {
  using Scan = cub::BlockScan<int, kTableThreads>;
  __shared__ typename Scan::TempStorage storage;
  __shared__ int places[kSizes][kTableThreads];
  int before, num_documents;
  {
    int count = 0;
    for (int n = threadIdx.x; n < N; n += kTableThreads) count += documents.begin[n] == n;
    Scan(storage).ExclusiveSum(count, before, num_documents);
  }
  const int num_chunks = first_chunk[num_documents];
  // Tiles of keys that come before the rows up to this one.
  const auto tiles_before = [&](int row) {
    int count = 0;
    for (int r = 0; documents.key_shift && r <= row; ++r) count += num_tiles_before(documents, r);
    return count;
  };
  const int num_tiles = num_chunks + tiles_before(N / documents.row_tokens - 1);
  if (num_tiles > tables.max_tiles) {  // only if a graph captured for fewer documents is replayed
    if (threadIdx.x == 0)
      printf("attention: %d tiles, but the graph was captured for %d\n", num_tiles, tables.max_tiles);
    __trap();
  }
  for (int c = threadIdx.x; c < num_chunks; c += kTableThreads) {
    int document = 0, behind = num_documents;  // whose first chunk is not behind c, and is
    while (behind - document > 1) {
      const int middle = (document + behind) / 2;
      if (first_chunk[middle] <= c) document = middle;
      else behind = middle;
    }
    const int query = chunk_begin[c], row = query / documents.row_tokens, first = first_chunk[document];
    const int begin = chunk_begin[first], others = tiles_before(row);
    const int before = begin == row * documents.row_tokens ? num_tiles_before(documents, row) : 0;
    const int own_first = first + others, end = first_chunk[behind] + others;
    tables.tiles[c + others] = {
        query + documents.shift(begin), chunk_begin[c + 1] - query, query, own_first - before, own_first, end};
    if (c != first) continue;
    const int first_key = documents.first_key(begin), end_key = begin + documents.shift(begin);
    for (int i = 0; i < before; ++i) {
      const int key = first_key + i * kTile;
      tables.tiles[own_first - before + i] = {key, min(kTile, end_key - key), -1, own_first - before, own_first, end};
    }
  }
  __syncthreads();

  // A tile belongs to the stripe in which its first slot lies.
  const auto my_part = [](int begin, int end) {
    const int stretch = (end - begin + kTableThreads - 1) / kTableThreads;
    const int first = min(end, begin + int(threadIdx.x) * stretch);
    return make_int2(first, min(end, first + stretch));
  };
  const int2 mine = my_part(0, num_tiles);
  const auto stripe_of = [&](int c) { return tables.slots[c] / tables.stripe_slots; };
  int width = 0, slot, num_slots;
  const auto width_of = [&](int c) {
    const Tile& tile = tables.tiles[c];
    return tile.has_queries() ? c - tile.first + 1 : 0;
  };
  for (int c = mine.x; c < mine.y; ++c) width += width_of(c);
  Scan(storage).ExclusiveSum(width, slot, num_slots);
  if (num_slots > tables.num_stripes * tables.stripe_slots) {
    if (threadIdx.x == 0) printf("attention: documents are longer than those that the graph was captured for\n");
    __trap();
  }
  for (int c = mine.x; c < mine.y; ++c) {
    tables.slots[c] = slot;
    slot += width_of(c);
  }
  for (int s = threadIdx.x; s < tables.num_stripes; s += kTableThreads) {
    tables.stripes[s] = {num_tiles, num_tiles, num_tiles, 0};
    tables.next_jobs[s] = 0;
  }
  __syncthreads();
  for (int c = mine.x; c < mine.y; ++c)
    if (c == 0 || stripe_of(c) != stripe_of(c - 1))
      tables.stripes[stripe_of(c)] = {c, num_tiles, tables.tiles[c].first, tables.slots[c]};
  __syncthreads();
  for (int s = threadIdx.x; s + 1 < tables.num_stripes; s += kTableThreads)
    tables.stripes[s].end = tables.stripes[s + 1].begin;
  __syncthreads();

  for (int s = 0; s < tables.num_stripes; ++s) {
    const Stripe stripe = tables.stripes[s];
    const auto small_of = [&](int key) {
      return max(0, kSizes - 1 - (32 - __clz(num_queries(stripe, key, tables.tiles[key]) - 1)));
    };
    const int2 keys = my_part(stripe.first_key, stripe.end);
#pragma unroll
    for (int i = 0; i < kSizes; ++i) places[i][threadIdx.x] = 0;
    for (int key = keys.x; key < keys.y; ++key) ++places[small_of(key)][threadIdx.x];
    __syncthreads();
    int* const flat = &places[0][0] + kSizes * threadIdx.x;
    int counts[kSizes];
#pragma unroll
    for (int i = 0; i < kSizes; ++i) counts[i] = flat[i];
    Scan(storage).ExclusiveSum(counts, counts);
#pragma unroll
    for (int i = 0; i < kSizes; ++i) flat[i] = counts[i];
    __syncthreads();
    for (int key = keys.x; key < keys.y; ++key)
      tables.keys[int64_t(s) * tables.max_tiles + places[small_of(key)][threadIdx.x]++] = key;
    __syncthreads();
  }
}

// ---- What both kernels share ----------------------------------------------------------------------------------------

struct Problem {
  int N, Hq, Hkv, Dh;
  float scale;
  Tables tables;
  const Stripe* stripe;
  const int* keys;  // of this stripe
  int* next_job;
  bf16* d_scores;  // (Hq, max_slots, kTile keys, kTile queries), each square as products read it
  int64_t max_slots;

  __device__ int group() const { return Hq / Hkv; }
  __device__ __forceinline__ bf16* square(int head, int slot, int queries, int keys) const {
    const int place = slot - stripe->slot + keys - tables.tiles[queries].first;
    return d_scores + (head * max_slots + place) * kSquareElements;
  }
};

// Blocks take turns at jobs that become smaller; every other turn goes through the blocks backwards, so that all get
// about as much.
template <class Visit>
__device__ __forceinline__ void for_each_job(int num_jobs, Visit&& visit) {
  const int blocks = gridDim.x;
  for (int turn = 0; turn * blocks < num_jobs; ++turn) {
    const int job = turn * blocks + static_cast<int>(turn % 2 ? blocks - 1 - blockIdx.x : blockIdx.x);
    if (job < num_jobs) visit(job);
  }
}

__device__ __forceinline__ void copy_panel(uint32_t to, const CUtensorMap& map, uint64_t* barrier, int head,
                                           int token) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) copy_box(to + i * kBlockBytes, map, barrier, i * kLine, head, token);
}

// Two stages in turn: of step `it`.
__device__ __forceinline__ int stage_of(int it) { return it & 1; }
__device__ __forceinline__ uint32_t parity_of(int it) { return it >> 1 & 1; }

using Sums = float[kDh / 2];  // (64, kDh) of a warpgroup

// scale * sums to the rows [0, tokens) of a tile of a tensor (N, heads, Dh).
__device__ __forceinline__ void store_sums(bf16* to, const Sums& sums, float scale, int tokens, int row_stride,
                                           int Dh) {
  const int lane = threadIdx.x % kWarpSize, row0 = threadIdx.x % kWarpgroup / kWarpSize * 16 + lane / 4;
#pragma unroll
  for (int group = 0; group < kDh / 32; ++group) {
    const int d = group * 32 + lane % 4 * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Quad quad;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = sums + (group * 4 + i) * 4 + half * 2;
        quad.v[i] = pack_bf16(pair[0] * scale, pair[1] * scale);
      }
      quad.transpose();
      const int row = row0 + half * 8;
      if (row < tokens && d < Dh) quad.store(to + int64_t(row) * row_stride + d);
    }
  }
}

// ---- Gradients of keys and values -----------------------------------------------------------------------------------

struct KeyMaps {
  CUtensorMap q, d_o;  // (N, Hq, Dh)
  CUtensorMap k, v;    // (N, Hkv, Dh); a box of all: 64 tokens, one head, 64 numbers
};
struct KeyResults {
  bf16 *d_k, *d_v;
  const float* carried_in;  // (tiles of a document, Hkv, 2, kWarpgroup * kDh / 2)  sums of d_v and d_k
  float* carry_out;
};

constexpr int kKeyThreads = 3 * kWarpgroup;
constexpr int kPlaceK = 0, kPlaceV = kPanelBytes, kPlaceQ = 2 * kPanelBytes, kPlaceDO = 4 * kPanelBytes,
              kPlaceP = 6 * kPanelBytes, kPlaceDS = kPlaceP + 2 * kBlockBytes;
constexpr int kKeySharedBytes = kPlaceDS + 2 * kBlockBytes + kSwizzleBytes;

struct KeyJob {
  int key, kv_head;   // key < 0: there is no more
  int begin, tokens;  // of the tile of keys
  int last_query;     // all query heads of this tile of queries, then those of the one before, and so on
  int steps, masked;  // tiles of queries times heads, and the first of them on the diagonal
  int carry;          // place of the sums of the tile
  bool is_begun, is_cut;
};

// Every thread that has read or written arrives, not one for its warp: it costs nothing here, and racecheck follows it.
struct KeyShared {
  uint64_t job_filled, keys_filled, keys_free;
  uint64_t q_filled[2], q_free[2], d_o_filled[2], d_o_free[2], p_filled[2], p_free[2];
  alignas(16) float lse[2][kTile], delta[2][kTile];  // of the queries; lse in powers of 2
  bf16* square[2];                                   // where dS goes
  KeyJob job;
};
static_assert(kKeySharedBytes + sizeof(KeyShared) <= 227 * 1024);

__device__ __forceinline__ KeyJob key_job(const Problem& p, const Stripe& stripe, int index) {
  const int key = p.keys[index / p.Hkv], kv_head = index % p.Hkv, group = p.group();
  const Tile tile = p.tables.tiles[key];
  const int steps = num_queries(stripe, key, tile) * group;
  return {key,
          kv_head,
          tile.begin,
          tile.tokens,
          min(tile.end, stripe.end) - 1,
          steps,
          key >= stripe.begin && tile.has_queries() ? steps - group : steps,
          (key - tile.first) * p.Hkv + kv_head,
          tile.end > stripe.end,
          key < stripe.begin};
}

// Calls visit(query, head) for the steps of a job, the last tile of queries first.
template <class Visit>
__device__ __forceinline__ void for_each_step(const KeyJob& job, int group, Visit&& visit) {
  const int last = job.last_query, end = last - job.steps / group, head = job.kv_head * group;
  for (int query = last; query > end; --query)
    for (int i = 0; i < group; ++i) visit(query, head + i);
}
// The same for all jobs that another thread finds.
template <class Visit>
__device__ __forceinline__ void follow_jobs(KeyShared& shared, int group, Visit&& visit) {
  for (int turn = 0;; ++turn) {
    wait(&shared.job_filled, turn & 1);
    if (shared.job.key < 0) return;
    for_each_step(shared.job, group, visit);
    arrive(&shared.keys_free);
  }
}

// Queries and their gradients have threads of their own: their stages become free at different times.
__device__ __forceinline__ void bring_stage(uint32_t to, const CUtensorMap& map, uint64_t* filled, uint64_t* free,
                                            int it, int head, int token) {
  const int stage = stage_of(it);
  wait(&free[stage], parity_of(it) ^ 1);
  arrive_expecting(&filled[stage], kPanelBytes);
  copy_panel(to + stage * kPanelBytes, map, &filled[stage], head, token);
}

// One thread. Blocks take the next job, the largest left, when they are done with one.
__device__ __forceinline__ void bring_keys_and_queries(const Problem& p, const KeyMaps& maps, uint32_t tiles,
                                                       KeyShared& shared) {
  const Stripe stripe = *p.stripe;
  const int num_jobs = (stripe.end - stripe.first_key) * p.Hkv;
  int it = 0;
  for (int turn = 0, index = blockIdx.x;; ++turn) {
    KeyJob job;
    if (index < num_jobs) job = key_job(p, stripe, index);
    else job.key = -1;
    wait(&shared.keys_free, (turn & 1) ^ 1);
    shared.job = job;
    arrive(&shared.job_filled);
    if (job.key < 0) {
      arrive(&shared.keys_filled);
      return;
    }
    index = gridDim.x + atomicAdd(p.next_job, 1);
    arrive_expecting(&shared.keys_filled, 2 * kPanelBytes);
    copy_panel(tiles + kPlaceK, maps.k, &shared.keys_filled, job.kv_head, job.begin);
    copy_panel(tiles + kPlaceV, maps.v, &shared.keys_filled, job.kv_head, job.begin);
    for_each_step(job, p.group(), [&](int query, int head) {
      bring_stage(tiles + kPlaceQ, maps.q, shared.q_filled, shared.q_free, it++, head, p.tables.tiles[query].query);
    });
  }
}
// A warp.
__device__ __forceinline__ void bring_query_gradients(const Problem& p, const KeyMaps& maps, uint32_t tiles,
                                                      KeyShared& shared) {
  int it = 0;
  follow_jobs(shared, p.group(), [&](int query, int head) {
    if (threadIdx.x % kWarpSize == 0)
      bring_stage(tiles + kPlaceDO, maps.d_o, shared.d_o_filled, shared.d_o_free, it, head,
                  p.tables.tiles[query].query);
    ++it;
  });
}
// A warp: a number per query, and `behind` for those behind the end of a document.
template <class Also>
__device__ __forceinline__ void bring_statistic(const Problem& p, const float* from, float factor, float behind,
                                                float (&to)[2][kTile], uint64_t* filled, uint64_t* free,
                                                KeyShared& shared, Also&& also) {
  const int lane = threadIdx.x % kWarpSize;
  int it = 0;
  follow_jobs(shared, p.group(), [&](int query, int head) {
    const Tile tile = p.tables.tiles[query];
    float own[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = lane + i * kWarpSize;
      own[i] = token < tile.tokens ? from[int64_t(tile.query + token) * p.Hq + head] * factor : behind;
    }
    const int stage = stage_of(it);
    wait(&free[stage], parity_of(it++) ^ 1);
    to[stage][lane] = own[0], to[stage][lane + kWarpSize] = own[1];
    also(stage, query, head);
    arrive(&filled[stage]);
  });
}

// square (64 keys, 64 queries) = keys queries^T
__device__ __forceinline__ void multiply_panels(float (&square)[kTile / 2], uint32_t keys, uint32_t queries) {
#pragma unroll
  for (int i = 0; i < kDh / 16; ++i) {
    const uint32_t at = i / 4 * kBlockBytes + i % 4 * kFactorStep<Major::kK>;
    multiply_add<kTile, Major::kK, Major::kK>(square, factor<Major::kK>(keys + at, 0),
                                              factor<Major::kK>(queries + at, 0), i > 0);
  }
}
// sums (64 keys, kDh) += square (64 keys, 64 queries) queries
__device__ __forceinline__ void add_product(Sums& sums, const LeftFactor (&square)[kTile / 16], uint32_t queries) {
#pragma unroll
  for (int i = 0; i < kTile / 16; ++i)
    multiply_add<kDh, Major::kMn>(sums, square[i],
                                  factor<Major::kMn>(queries + i * kFactorStep<Major::kMn>, kBlockBytes), true);
}

__device__ __forceinline__ float2 query_pair(const float* per_query, int block) {
  return *reinterpret_cast<const float2*>(per_query + 8 * block + threadIdx.x % 4 * 2);
}

__device__ __forceinline__ int64_t place_of_sums(const KeyJob& job, int which, int i) {
  return (int64_t(job.carry) * 2 + which) * (kWarpgroup * kDh / 2) + i * kWarpgroup + threadIdx.x % kWarpgroup * 4;
}
__device__ __forceinline__ void begin_sums(Sums& sums, const KeyJob& job, const KeyResults& results, int which) {
#pragma unroll
  for (int i = 0; i < kDh / 2; i += 4) {
    float4 x = make_float4(0, 0, 0, 0);
    if (job.is_begun) x = *reinterpret_cast<const float4*>(results.carried_in + place_of_sums(job, which, i));
    sums[i] = x.x, sums[i + 1] = x.y, sums[i + 2] = x.z, sums[i + 3] = x.w;
  }
}
__device__ __forceinline__ void end_sums(const Sums& sums, const KeyJob& job, const KeyResults& results, int which,
                                         const Problem& p) {
  if (job.is_cut) {
#pragma unroll
    for (int i = 0; i < kDh / 2; i += 4)
      *reinterpret_cast<float4*>(results.carry_out + place_of_sums(job, which, i)) =
          make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
    return;
  }
  bf16* const to = (which ? results.d_k : results.d_v) + (int64_t(job.begin) * p.Hkv + job.kv_head) * p.Dh;
  store_sums(to, sums, which ? p.scale : 1.0f, job.tokens, p.Hkv * p.Dh, p.Dh);
}

// P = exp(scale K Q^T - lse), d_v += P^T d_o; hands P on, rounded.
__device__ __forceinline__ void sum_value_gradients(const Problem& p, const KeyResults& results, unsigned char* base,
                                                    KeyShared& shared) {
  const uint32_t tiles = shared_address(base);
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kWarpSize;
  const int key0 = thread / kWarpSize * 16 + lane / 4, query0 = lane % 4 * 2;  // of this thread in a square
  const float scale_log2 = p.scale * kLog2E;
  for (int it = 0, job_it = 0;; ++job_it) {
    wait(&shared.keys_filled, job_it & 1);
    const KeyJob job = shared.job;
    if (job.key < 0) return;
    Sums sums;
    float square[kTile / 2];
    const auto multiply = [&](int it) {
      wait(&shared.q_filled[stage_of(it)], parity_of(it));
      begin_products();
      multiply_panels(square, tiles + kPlaceK, tiles + kPlaceQ + stage_of(it) * kPanelBytes);
      commit_products();
    };
    multiply(it);
    wait_for_products<0>();
    hold(square);
    begin_sums(sums, job, results, 0);
    for (int step = 0; step < job.steps; ++step, ++it) {
      const int stage = stage_of(it);
      const uint32_t parity = parity_of(it);
      // Keys behind a query are not seen by it, and those behind the tile belong to another.
      const auto behind = [&](int half) {
        return key0 + 8 * half >= job.tokens ? 2 * kTile : step >= job.masked ? key0 + 8 * half - query0 : -kTile;
      };
      LeftFactor prob[kTile / 16];
#pragma unroll
      for (int block = 0; block < kTile / 8; ++block) {
        const float2 lse = query_pair(shared.lse[stage], block);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* const s = square + 4 * block + 2 * half;
          const float low = exp2_fast(s[0] * scale_log2 - lse.x), high = exp2_fast(s[1] * scale_log2 - lse.y);
          const int first = behind(half) - block * 8;
          prob[block / 2].block[block % 2 * 2 + half] = pack_bf16(first > 0 ? 0.0f : low, first > 1 ? 0.0f : high);
        }
      }
      arrive(&shared.q_free[stage]);
      wait(&shared.p_free[stage], parity ^ 1);
      uint4* const handed = reinterpret_cast<uint4*>(base + kPlaceP + stage * kBlockBytes) + thread;
#pragma unroll
      for (int i = 0; i < kTile / 16; ++i)
        handed[i * kWarpgroup] = make_uint4(prob[i].block[0], prob[i].block[1], prob[i].block[2], prob[i].block[3]);
      arrive(&shared.p_filled[stage]);
      wait(&shared.d_o_filled[stage], parity);
      begin_products();
      add_product(sums, prob, tiles + kPlaceDO + stage * kPanelBytes);
      commit_products();
      if (step + 1 < job.steps) {
        multiply(it + 1);
        wait_for_products<1>();
        arrive(&shared.d_o_free[stage]);
      } else {
        arrive(&shared.keys_free);
      }
      wait_for_products<0>();
      hold(square);
      hold(sums);
      if (step + 1 == job.steps) arrive(&shared.d_o_free[stage]);
    }
    end_sums(sums, job, results, 0, p);
  }
}

// dS = P * (V d_o^T - delta), d_k += dS^T Q; leaves dS in device memory.
__device__ __forceinline__ void sum_key_gradients(const Problem& p, const KeyResults& results, unsigned char* base,
                                                  KeyShared& shared) {
  const uint32_t tiles = shared_address(base);
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kWarpSize, warp = thread / kWarpSize;
  for (int it = 0, job_it = 0;; ++job_it) {
    wait(&shared.keys_filled, job_it & 1);
    const KeyJob job = shared.job;
    if (job.key < 0) break;
    Sums sums;
    float square[kTile / 2];
    const auto multiply = [&](int it) {
      wait(&shared.d_o_filled[stage_of(it)], parity_of(it));
      begin_products();
      multiply_panels(square, tiles + kPlaceV, tiles + kPlaceDO + stage_of(it) * kPanelBytes);
      commit_products();
    };
    multiply(it);
    wait_for_products<0>();
    hold(square);
    begin_sums(sums, job, results, 1);
    for (int step = 0; step < job.steps; ++step, ++it) {
      const int stage = stage_of(it);
      const uint32_t parity = parity_of(it);
      wait(&shared.p_filled[stage], parity);
      const uint4* const handed = reinterpret_cast<const uint4*>(base + kPlaceP + stage * kBlockBytes) + thread;
      LeftFactor d_score[kTile / 16];
#pragma unroll
      for (int i = 0; i < kTile / 16; ++i) {
        const uint4 prob = handed[i * kWarpgroup];
        const uint32_t pairs[4] = {prob.x, prob.y, prob.z, prob.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 delta = query_pair(shared.delta[stage], 2 * i + j / 2), p2 = unpack_bf16(pairs[j]);
          const float* const d_prob = square + 8 * i + 2 * j;
          d_score[i].block[j] = pack_bf16(p2.x * (d_prob[0] - delta.x), p2.y * (d_prob[1] - delta.y));
        }
      }
      bf16* const square_to = shared.square[stage];
      arrive(&shared.p_free[stage]);
      arrive(&shared.d_o_free[stage]);
      wait(&shared.q_filled[stage], parity);
      begin_products();
      add_product(sums, d_score, tiles + kPlaceQ + stage * kPanelBytes);
      commit_products();
      // The store of the other stage's square has read it long since.
      const uint32_t staging = tiles + kPlaceDS + stage * kBlockBytes;
#pragma unroll
      for (int i = 0; i < kTile / 16; ++i)
        store_factor(chunk_address(staging, 16 * warp + lane % 16, 2 * i + lane / 16), d_score[i]);
      fence_shared_writes();
      if (thread == 0) wait_for_added<0>();
      sync_threads(1, kWarpgroup);
      if (thread == 0) store_bytes(square_to, staging, kBlockBytes);
      if (step + 1 < job.steps) {
        multiply(it + 1);
        wait_for_products<1>();
        arrive(&shared.q_free[stage]);
      } else {
        arrive(&shared.keys_free);
      }
      wait_for_products<0>();
      hold(square);
      hold(sums);
      if (step + 1 == job.steps) arrive(&shared.q_free[stage]);
    }
    end_sums(sums, job, results, 1, p);
  }
  if (thread == 0) wait_for_added<0>();
}

// A block of three warpgroups per multiprocessor takes tiles of keys, each with all the query heads of its group. The
// first brings tiles, lse and delta; the second sums up d_v and hands P to the third, which sums up d_k. Each has its
// next square of scores under way while it adds up the last one, and while one turns scores into factors the other's
// products run. Blocks at work at one time read the same queries, the last of a document first, so that these come from
// the L2: with keys in the order of their work alone, or the first queries first, they came from device memory, which
// was busy 80 % of the time.
//
// A step is 4 products of 2 * 64 * 64 * kDh FLOP: 2048 cycles of the tensor cores. Registers decide the 64 keys: one
// sum of 64 x 256 takes 128 of a thread's 224, the square 32, factors 16, so d_k and d_v need a warpgroup each, and K
// and V have no room there. Shared memory decides the 64 queries: K and V 64 KiB, two stages of Q and d_o 128, P and
// dS, twice, 32; 224 of 227 KiB. Its traffic is what limits a step: products read 192 KiB, copies write 64, P and dS
// 32, which at 128 bytes a cycle take 2304 cycles.
__global__ void __launch_bounds__(kKeyThreads, 1)
    key_kernel(const __grid_constant__ KeyMaps maps, const __grid_constant__ Problem p, KeyResults results,
               const float* lse, const float* delta) {
  if constexpr (kOnHopper) {
    extern __shared__ unsigned char unaligned[];
    __shared__ KeyShared shared;
    unsigned char* const base = unaligned + (kSwizzleBytes - shared_address(unaligned) % kSwizzleBytes) % kSwizzleBytes;
    if (threadIdx.x == 0) {
      init_barrier(&shared.keys_filled, 1);
      init_barrier(&shared.job_filled, 1);
      init_barrier(&shared.keys_free, 2 * kWarpgroup + 3 * kWarpSize);
      for (int i = 0; i < 2; ++i) {
        init_barrier(&shared.q_filled[i], 1 + kWarpSize);
        init_barrier(&shared.d_o_filled[i], 1 + kWarpSize);
        init_barrier(&shared.q_free[i], 2 * kWarpgroup);
        init_barrier(&shared.d_o_free[i], 2 * kWarpgroup);
        init_barrier(&shared.p_filled[i], kWarpgroup);
        init_barrier(&shared.p_free[i], kWarpgroup);
      }
      fence_barrier_init();
    }
    __syncthreads();
    const int warpgroup = threadIdx.x / kWarpgroup;
    if (warpgroup == 0) {
      leave_registers<56>();
      const int warp = threadIdx.x / kWarpSize;
      const uint32_t tiles = shared_address(base);
      if (threadIdx.x == 0) bring_keys_and_queries(p, maps, tiles, shared);
      if (warp == 1) bring_query_gradients(p, maps, tiles, shared);
      // Queries behind the end of a document get probability 0.
      if (warp == 2)
        bring_statistic(p, lse, kLog2E, INFINITY, shared.lse, shared.q_filled, shared.q_free, shared,
                        [](int, int, int) {});
      if (warp == 3)
        bring_statistic(p, delta, 1.0f, 0.0f, shared.delta, shared.d_o_filled, shared.d_o_free, shared,
                        [&](int stage, int query, int head) {
                          if (threadIdx.x % kWarpSize == 0)
                            shared.square[stage] = p.square(head, p.tables.slots[query], query, shared.job.key);
                        });
    } else if (warpgroup == 1) {
      take_registers<224>();
      sum_value_gradients(p, results, base, shared);
    } else {
      take_registers<224>();
      sum_key_gradients(p, results, base, shared);
    }
  }
}

// ---- Gradient of queries --------------------------------------------------------------------------------------------

constexpr int kQueryHeads = 2, kQueryThreads = (1 + kQueryHeads) * kWarpgroup;
constexpr int kQueryStages = 4, kQueryStageBytes = kPanelBytes + kQueryHeads * kBlockBytes;
constexpr int kQuerySharedBytes = kQueryStages * kQueryStageBytes + kSwizzleBytes;
static_assert(kQuerySharedBytes <= 227 * 1024);

// d_q = scale dS K. A job is a tile of queries of two heads of a group, one per warpgroup; they share the keys. Of
// the 227 KiB of shared memory four stages take 192; a step is 2 * 2 * 64 * 64 * kDh FLOP, 1024 cycles of the tensor
// cores, and reads 48 KiB. The squares of dS come from device memory: 16 KiB of those.
__global__ void __launch_bounds__(kQueryThreads, 1)
    query_kernel(const __grid_constant__ CUtensorMap k, const __grid_constant__ Problem p, bf16* d_q) {
  if constexpr (kOnHopper) {
    extern __shared__ unsigned char unaligned[];
    __shared__ uint64_t filled[kQueryStages], free[kQueryStages];
    const uint32_t tiles =
        shared_address(unaligned) + (kSwizzleBytes - shared_address(unaligned) % kSwizzleBytes) % kSwizzleBytes;
    if (threadIdx.x == 0) {
      for (int i = 0; i < kQueryStages; ++i) {
        init_barrier(&filled[i], 1);
        init_barrier(&free[i], kQueryHeads * kWarpgroup);
      }
      fence_barrier_init();
    }
    __syncthreads();
    const Stripe stripe = *p.stripe;
    const int parts = (p.group() + kQueryHeads - 1) / kQueryHeads;
    int stage = 0;
    uint32_t parity = 0;
    const auto next_stage = [&] {
      if (++stage == kQueryStages) stage = 0, parity ^= 1;
    };
    const auto for_each = [&](auto&& visit) {
      for_each_job((stripe.end - stripe.begin) * p.Hkv * parts, [&](int job) {
        const int query = stripe.end - 1 - job / (p.Hkv * parts), kv_head = job / parts % p.Hkv;
        const int first = job % parts * kQueryHeads;
        if (!p.tables.tiles[query].has_queries()) return;
        visit(query, kv_head, kv_head * p.group() + first, min(kQueryHeads, p.group() - first));
      });
    };
    if (threadIdx.x < kWarpgroup) {
      leave_registers<40>();
      if (threadIdx.x != 0) return;
      for_each([&](int query, int kv_head, int head, int num_heads) {
        const int first = p.tables.tiles[query].first, slot = p.tables.slots[query];
        const bf16* squares[kQueryHeads];
#pragma unroll
        for (int i = 0; i < kQueryHeads; ++i) squares[i] = p.square(head + i, slot, query, first);
        const int own_first = p.tables.tiles[query].own_first, own_begin = p.tables.tiles[own_first].begin;
        const int first_begin = p.tables.tiles[first].begin;
        for (int key = first; key <= query; ++key) {
          const int begin =
              key < own_first ? first_begin + (key - first) * kTile : own_begin + (key - own_first) * kTile;
          const uint32_t to = tiles + stage * kQueryStageBytes;
          wait(&free[stage], parity ^ 1);
          arrive_expecting(&filled[stage], kPanelBytes + num_heads * kBlockBytes);
          copy_panel(to, k, &filled[stage], kv_head, begin);
#pragma unroll
          for (int i = 0; i < kQueryHeads; ++i)
            if (i < num_heads)
              copy_bytes(to + kPanelBytes + i * kBlockBytes, squares[i] + (key - first) * kSquareElements, kBlockBytes,
                         &filled[stage]);
          next_stage();
        }
      });
      return;
    }
    take_registers<232>();
    const int warpgroup = threadIdx.x / kWarpgroup - 1;
    for_each([&](int query, int, int head, int num_heads) {
      const Tile tile = p.tables.tiles[query];
      Sums sums;
      int previous = -1;
      for (int key = tile.first; key <= query; ++key) {
        wait(&filled[stage], parity);
        const uint32_t keys = tiles + stage * kQueryStageBytes, square = keys + kPanelBytes + warpgroup * kBlockBytes;
        begin_products();
#pragma unroll
        for (int i = 0; i < kTile / 16; ++i) {
          constexpr uint32_t kStep = kFactorStep<Major::kMn>;
          multiply_add_256<Major::kMn, Major::kMn>(sums, factor<Major::kMn>(square + i * kStep, kBlockBytes),
                                                   factor<Major::kMn>(keys + i * kStep, kBlockBytes),
                                                   key > tile.first || i > 0);
        }
        commit_products();
        wait_for_products<1>();
        if (previous >= 0) arrive(&free[previous]);
        previous = stage;
        next_stage();
      }
      wait_for_products<0>();
      hold(sums);
      arrive(&free[previous]);
      if (warpgroup < num_heads)
        store_sums(d_q + (int64_t(tile.query) * p.Hq + head + warpgroup) * p.Dh, sums, p.scale, tile.tokens,
                   p.Hq * p.Dh, p.Dh);
    });
  }
}

// ---- Launchers ------------------------------------------------------------------------------------------------------

CUtensorMap map_of_heads(const Tensor& t) {
  const int64_t N = t.dim(0), heads = t.dim(1), Dh = t.dim(2);
  return make_tensor_map<bf16, 3>({pointer<bf16>(t), {Dh, heads, N}, {Dh, heads * Dh}, {kLine, 1, kTile}});
}

// Most tiles, and most squares of dS of a head, that there can be with up to so many documents.
struct Bounds {
  int64_t tiles, slots;
};
Bounds bounds_of(const Segments& segments) {
  const int64_t N = segments.num_tokens(), width = ceil_div(segments.row_tokens, kTile);
  int64_t tiles_before = 0;  // all tiles of the first document of a row see those before it
  for (int64_t before : segments.tokens_before) tiles_before += ceil_div(before, kTile);
  const int64_t squares_before = tiles_before * width;
  if (is_whole_rows(segments))
    return {segments.num_rows * width + tiles_before, segments.num_rows * (width * (width + 1) / 2) + squares_before};
  // A document of n tokens, m = (n - 1) / kTile, has at most m + 1 tiles and (m + 1) (m + 2) / 2 squares.
  const int64_t D = document_bound(segments.num_documents()), m = N / kTile;
  return {D + m + tiles_before, D + (3 * m + m * width) / 2 + 1 + squares_before};
}
// Most tiles of keys that a tile of queries sees.
int64_t most_width(const Segments& segments) {
  int64_t before = 0;
  for (int64_t tokens : segments.tokens_before) before = std::max(before, tokens);
  return ceil_div(segments.row_tokens, kTile) + ceil_div(before, kTile);
}

}  // namespace

bool wgmma_attention_supports(const Context& ctx, const AttentionTensors& in) {
  const int64_t Dh = in.q.dim(2);
  return has_hopper_kernels(ctx) && in.q.dtype() == DType::kBF16 && Dh % 16 == 0 && Dh > 128 && Dh <= kDh;
}

void wgmma_attention_backward(Context& ctx, AttentionGradients& d_in, const AttentionOutputGradient& d_out,
                              const AttentionTensors& in, const AttentionOutputs& out, const Segments& segments,
                              int64_t most_score_bytes) {
  const int64_t N = in.q.dim(0), Hq = in.q.dim(1), Hkv = in.k.dim(1), Dh = in.q.dim(2);
  const int64_t width = most_width(segments);
  const Bounds most = bounds_of(segments);
  const int64_t square_bytes = Hq * kSquareElements * sizeof(bf16);
  if (most_score_bytes == kByLength)
    most_score_bytes = std::max(kMostScoreBytes, (kLeastQueryTiles + 1) * width * square_bytes);
  const int64_t num_stripes =
      std::max<int64_t>(1, ceil_div(most.slots, std::max(width, most_score_bytes / square_bytes - width)));
  const int64_t stripe_slots = std::max(width, ceil_div(most.slots, num_stripes));
  const int64_t max_slots = num_stripes == 1 ? most.slots : stripe_slots + width;

  Scratch scratch(ctx);
  Problem p = {static_cast<int>(N),
               static_cast<int>(Hq),
               static_cast<int>(Hkv),
               static_cast<int>(Dh),
               1 / std::sqrt(static_cast<float>(Dh)),
               {reinterpret_cast<Tile*>(scratch.array<int32_t>(sizeof(Tile) / sizeof(int32_t) * most.tiles)),
                scratch.array<int32_t>(most.tiles), reinterpret_cast<Stripe*>(scratch.array<int32_t>(4 * num_stripes)),
                scratch.array<int32_t>(num_stripes * most.tiles), scratch.array<int32_t>(num_stripes),
                static_cast<int>(most.tiles), static_cast<int>(num_stripes), static_cast<int>(stripe_slots)},
               nullptr,
               nullptr,
               nullptr,
               static_cast<bf16*>(scratch.tensor({Hq, max_slots, kTile, kTile}, DType::kBF16).raw()),
               max_slots};
  const int64_t carried = num_stripes == 1 ? 0 : width * Hkv * 2 * kWarpgroup * (kDh / 2);
  float* const carry[2] = {scratch.array<float>(carried), scratch.array<float>(carried)};
  if (ctx.counts_only()) return;

  tables_kernel<<<1, kTableThreads, 0, stream_of(ctx)>>>(p.tables, documents_of(segments),
                                                         pointer<int32_t>(segments.on_gpu.first_chunk),
                                                         pointer<int32_t>(segments.on_gpu.chunk_begin), p.N);
  check_launch("attention_backward tables");
  const KeyMaps maps = {map_of_heads(in.q), map_of_heads(d_out.d_o), map_of_heads(in.k), map_of_heads(in.v)};
  allow_shared_memory(key_kernel, kKeySharedBytes);
  allow_shared_memory(query_kernel, kQuerySharedBytes);
  for (int64_t s = num_stripes - 1; s >= 0; --s) {
    p.stripe = p.tables.stripes + s;
    p.keys = p.tables.keys + s * most.tiles;
    p.next_job = p.tables.next_jobs + s;
    const KeyResults results = {pointer<bf16>(d_in.k), pointer<bf16>(d_in.v), carry[(s + 1) % 2], carry[s % 2]};
    key_kernel<<<ctx.gpu().num_sms, kKeyThreads, kKeySharedBytes, stream_of(ctx)>>>(
        maps, p, results, pointer<float>(out.lse), pointer<float>(d_out.delta));
    check_launch("attention_backward keys");
    query_kernel<<<ctx.gpu().num_sms, kQueryThreads, kQuerySharedBytes, stream_of(ctx)>>>(maps.k, p,
                                                                                          pointer<bf16>(d_in.q));
    check_launch("attention_backward queries");
  }
}

}  // namespace braid::cuda
