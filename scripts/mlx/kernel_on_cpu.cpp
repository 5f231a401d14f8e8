// Runs the source of the delta-rule kernel (delta_rule.metal) on a CPU, with 32 threads as the lanes of a SIMD group, and
// compares the results with a plain implementation of the rule in double precision. This checks the arithmetic and all
// indices; it cannot check the translation by the Metal or CUDA compiler.
#include <barrier>
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

namespace metal {
inline float max(float a, float b) { return std::fmax(a, b); }
inline float fabs(float a) { return std::fabs(a); }
namespace precise {
inline float exp(float x) { return std::exp(x); }
inline float log(float x) { return std::log(x); }
inline float rsqrt(float x) { return 1.0f / std::sqrt(x); }
}  // namespace precise
}  // namespace metal

struct Position {
  unsigned x, y, z;
};

std::barrier<> lane_barrier(32);
float lane_values[32];
thread_local int this_lane;

float simd_sum(float value) {
  lane_values[this_lane] = value;
  lane_barrier.arrive_and_wait();
  float sum = 0;
  for (float lane : lane_values) sum += lane;
  lane_barrier.arrive_and_wait();
  return sum;
}

template <int KEY_HEADS, int HEADS, int K, int V>
void run_lane(Position thread_position_in_threadgroup, Position thread_position_in_grid, const int* mixed_shape,
              const float* mixed, const float* a, const float* b, const float* a_log, const float* dt_bias,
              const float* state, float* out, float* state_out) {
#include "delta/delta_rule.metal"
}

template <int KEY_HEADS, int HEADS, int K, int V>
double largest_difference(int tokens) {
  constexpr int WIDTH = 2 * KEY_HEADS * K + HEADS * V;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  auto draw = [&](size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
  };
  auto mixed = draw(size_t(tokens) * WIDTH), a = draw(tokens * HEADS), b = draw(tokens * HEADS), a_log = draw(HEADS),
       dt_bias = draw(HEADS), state = draw(size_t(HEADS) * V * K);
  std::vector<float> out(tokens * HEADS * V, NAN), state_out(state.size(), NAN);
  const int mixed_shape[2] = {tokens, WIDTH};
  std::vector<std::thread> threads;
  for (unsigned lane = 0; lane < 32; ++lane) {
    threads.emplace_back([&, lane] {
      this_lane = int(lane);
      for (unsigned head = 0; head < HEADS; ++head)
        for (unsigned column = 0; column < V; ++column)
          run_lane<KEY_HEADS, HEADS, K, V>({lane, column % 4, 0}, {lane, column, head}, mixed_shape, mixed.data(),
                                           a.data(), b.data(), a_log.data(), dt_bias.data(), state.data(), out.data(),
                                           state_out.data());
    });
  }
  for (auto& thread : threads) thread.join();

  auto silu = [](double x) { return x / (1 + std::exp(-x)); };
  double largest = 0;
  auto compare = [&](double expected, float found) {
    largest = std::isnan(found) ? INFINITY : std::fmax(largest, std::fabs(expected - found));
  };
  std::vector<double> expected_state(state.begin(), state.end());
  for (int t = 0; t < tokens; ++t) {
    const float* row = mixed.data() + size_t(t) * WIDTH;
    for (int head = 0; head < HEADS; ++head) {
      const int key_head = head * KEY_HEADS / HEADS;
      std::vector<double> q(K), k(K);
      double qq = 1e-6, kk = 1e-6;
      for (int i = 0; i < K; ++i) {
        q[i] = silu(row[key_head * K + i]);
        k[i] = silu(row[KEY_HEADS * K + key_head * K + i]);
        qq += q[i] * q[i];
        kk += k[i] * k[i];
      }
      for (int i = 0; i < K; ++i) {
        q[i] /= std::sqrt(qq) * std::sqrt(double(K));
        k[i] /= std::sqrt(kk);
      }
      const double step = double(a[t * HEADS + head]) + dt_bias[head];
      const double decay = std::exp(-std::exp(double(a_log[head])) * std::log1p(std::exp(step)));
      const double beta = 1 / (1 + std::exp(-double(b[t * HEADS + head])));
      for (int column = 0; column < V; ++column) {
        double* s = expected_state.data() + (size_t(head) * V + column) * K;
        double predicted = 0, read = 0;
        for (int i = 0; i < K; ++i) predicted += decay * s[i] * k[i];
        const double delta = beta * (silu(row[2 * KEY_HEADS * K + head * V + column]) - predicted);
        for (int i = 0; i < K; ++i) {
          s[i] = decay * s[i] + k[i] * delta;
          read += s[i] * q[i];
        }
        compare(read, out[(t * HEADS + head) * V + column]);
      }
    }
  }
  for (size_t i = 0; i < state.size(); ++i) compare(expected_state[i], state_out[i]);
  std::printf("%d tokens, %2d key heads, %2d value heads, K %3d, V %3d: largest difference %.1e\n", tokens, KEY_HEADS,
              HEADS, K, V, largest);
  return largest;
}

int main() {
  double largest = largest_difference<2, 2, 32, 64>(1);
  largest = std::fmax(largest, largest_difference<2, 4, 64, 32>(7));
  largest = std::fmax(largest, largest_difference<4, 12, 96, 6>(3));
  largest = std::fmax(largest, largest_difference<16, 16, 128, 128>(1));  // Qwen3.5-0.8B
  return largest <= 1e-5 ? 0 : 1;
}
