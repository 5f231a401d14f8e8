// Runs the sources of the GPU kernels on a CPU, with 32 threads as the lanes of a SIMD group, and compares the results with
// plain implementations in double precision. This checks the arithmetic and all indices; it cannot check the translation by
// the Metal or CUDA compiler.
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

using T = float;
constexpr float EPSILON = 1e-6f;

void run_swiglu(Position thread_position_in_grid, const int* gate_shape, const float* gate, const float* up, float* out) {
#include "elementwise/swiglu.metal"
}

template <int V>
void run_gated_norm(Position thread_position_in_threadgroup, Position thread_position_in_grid, const float* x,
                    const float* z, const float* weight, float* out) {
#include "elementwise/gated_norm.metal"
}

template <int TAPS, int CHANNELS>
void run_convolution(Position thread_position_in_grid, const int* x_shape, const float* window, const float* x,
                     const float* weight, float* out, float* window_out) {
#include "elementwise/convolution.metal"
}

double elementwise_difference(int tokens) {
  constexpr int WIDTH = 70, V = 64, HEADS = 3, TAPS = 4, CHANNELS = 6;
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  auto draw = [&](int count) {
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
  };
  auto silu = [](double x) { return x / (1 + std::exp(-x)); };
  double largest = 0;
  auto compare = [&](double expected, float found) {
    largest = std::isnan(found) ? INFINITY : std::fmax(largest, std::fabs(expected - found));
  };

  auto gate = draw(tokens * WIDTH), up = draw(tokens * WIDTH);
  std::vector<float> product(tokens * WIDTH, NAN);
  const int gate_shape[2] = {tokens, WIDTH};
  for (unsigned i = 0; i < unsigned(tokens * WIDTH + 50); ++i)
    run_swiglu({i, 0, 0}, gate_shape, gate.data(), up.data(), product.data());
  for (int i = 0; i < tokens * WIDTH; ++i) compare(silu(gate[i]) * up[i], product[i]);

  const int rows = tokens * HEADS;
  auto x = draw(rows * V), z = draw(rows * V), weight = draw(V);
  std::vector<float> gated(rows * V, NAN);
  std::vector<std::thread> threads;
  for (unsigned lane = 0; lane < 32; ++lane) {
    threads.emplace_back([&, lane] {
      this_lane = int(lane);
      for (unsigned row = 0; row < unsigned(rows); ++row)
        run_gated_norm<V>({lane, 0, 0}, {lane, row, 0}, x.data(), z.data(), weight.data(), gated.data());
    });
  }
  for (auto& thread : threads) thread.join();
  for (int row = 0; row < rows; ++row) {
    double square = 0;
    for (int i = 0; i < V; ++i) square += double(x[row * V + i]) * x[row * V + i];
    const double scale = 1 / std::sqrt(square / V + 1e-6);
    for (int i = 0; i < V; ++i) compare(x[row * V + i] * scale * weight[i] * silu(z[row * V + i]), gated[row * V + i]);
  }

  auto window = draw((TAPS - 1) * CHANNELS), input = draw(tokens * CHANNELS), taps = draw(TAPS * CHANNELS);
  std::vector<float> out(tokens * CHANNELS, NAN), window_out(window.size(), NAN), all(window);
  all.insert(all.end(), input.begin(), input.end());
  const int x_shape[2] = {tokens, CHANNELS};
  for (unsigned token = 0; token < unsigned(tokens); ++token)
    for (unsigned channel = 0; channel < CHANNELS + 2; ++channel)
      run_convolution<TAPS, CHANNELS>({channel, token, 0}, x_shape, window.data(), input.data(), taps.data(), out.data(),
                                      window_out.data());
  for (int token = 0; token < tokens; ++token)
    for (int channel = 0; channel < CHANNELS; ++channel) {
      double sum = 0;
      for (int tap = 0; tap < TAPS; ++tap)
        sum += double(all[(token + tap) * CHANNELS + channel]) * taps[tap * CHANNELS + channel];
      compare(sum, out[token * CHANNELS + channel]);
    }
  for (size_t i = 0; i < window.size(); ++i) compare(all[tokens * CHANNELS + i], window_out[i]);
  std::printf("%d tokens, SwiGLU, gated norm, convolution: largest difference %.1e\n", tokens, largest);
  return largest;
}

int main() {
  double largest = largest_difference<2, 2, 32, 64>(1);
  largest = std::fmax(largest, largest_difference<2, 4, 64, 32>(7));
  largest = std::fmax(largest, largest_difference<4, 12, 96, 6>(3));
  largest = std::fmax(largest, largest_difference<16, 16, 128, 128>(1));  // Qwen3.5-0.8B
  for (int tokens : {1, 2, 3, 5}) largest = std::fmax(largest, elementwise_difference(tokens));
  return largest <= 1e-5 ? 0 : 1;
}
