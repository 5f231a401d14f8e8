// Runs the text of delta_step.metal on a CPU: 32 threads are the lanes of a SIMD group, and what it computes is held
// against the rule written down plainly in double precision. This shows that the arithmetic and every index are right;
// what Metal's compiler makes of the text it cannot show.
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

struct Place {
  unsigned x, y, z;
};

// A SIMD group's lanes meet here to add up.
std::barrier<> meeting(32);
float lanes[32];
thread_local int this_lane;

float simd_sum(float value) {
  lanes[this_lane] = value;
  meeting.arrive_and_wait();
  float sum = 0;
  for (float lane : lanes) sum += lane;
  meeting.arrive_and_wait();
  return sum;
}

template <int KEY_HEADS, int HEADS, int K, int V>
void lane_of_kernel(Place thread_position_in_threadgroup, Place thread_position_in_grid, const float* mixed,
                    const float* a, const float* b, const float* a_log, const float* dt_bias, const float* state,
                    float* out, float* state_out) {
#include "delta_step.metal"
}

template <int KEY_HEADS, int HEADS, int K, int V>
double worst_difference() {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  auto draw = [&](size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
  };
  auto mixed = draw(2 * KEY_HEADS * K + HEADS * V), a = draw(HEADS), b = draw(HEADS), a_log = draw(HEADS),
       dt_bias = draw(HEADS), state = draw(size_t(HEADS) * V * K);
  std::vector<float> out(HEADS * V, NAN), state_out(state.size(), NAN);
  std::vector<std::thread> threads;
  for (unsigned lane = 0; lane < 32; ++lane) {
    threads.emplace_back([&, lane] {
      this_lane = int(lane);
      for (unsigned head = 0; head < HEADS; ++head)
        for (unsigned column = 0; column < V; ++column)
          lane_of_kernel<KEY_HEADS, HEADS, K, V>({lane, column % 4, 0}, {lane, column, head}, mixed.data(), a.data(),
                                                 b.data(), a_log.data(), dt_bias.data(), state.data(), out.data(),
                                                 state_out.data());
    });
  }
  for (auto& thread : threads) thread.join();

  auto silu = [](double x) { return x / (1 + std::exp(-x)); };
  double worst = 0;
  for (int head = 0; head < HEADS; ++head) {
    const int key_head = head * KEY_HEADS / HEADS;
    std::vector<double> q(K), k(K);
    double qq = 1e-6, kk = 1e-6;
    for (int i = 0; i < K; ++i) {
      q[i] = silu(mixed[key_head * K + i]);
      k[i] = silu(mixed[KEY_HEADS * K + key_head * K + i]);
      qq += q[i] * q[i];
      kk += k[i] * k[i];
    }
    for (int i = 0; i < K; ++i) {
      q[i] /= std::sqrt(qq) * std::sqrt(double(K));
      k[i] /= std::sqrt(kk);
    }
    const double decay = std::exp(-std::exp(double(a_log[head])) * std::log1p(std::exp(double(a[head]) + dt_bias[head])));
    const double beta = 1 / (1 + std::exp(-double(b[head])));
    for (int column = 0; column < V; ++column) {
      const size_t row = (size_t(head) * V + column) * K;
      double seen = 0, read = 0;
      for (int i = 0; i < K; ++i) seen += decay * state[row + i] * k[i];
      const double delta = beta * (silu(mixed[2 * KEY_HEADS * K + head * V + column]) - seen);
      for (int i = 0; i < K; ++i) {
        const double after = decay * state[row + i] + k[i] * delta;
        read += after * q[i];
        worst = std::fmax(worst, std::fabs(after - state_out[row + i]));
        if (std::isnan(state_out[row + i])) worst = INFINITY;
      }
      worst = std::fmax(worst, std::fabs(read - out[head * V + column]));
      if (std::isnan(out[head * V + column])) worst = INFINITY;
    }
  }
  std::printf("%2d key heads, %2d value heads, K %3d, V %3d: largest difference %.1e\n", KEY_HEADS, HEADS, K, V, worst);
  return worst;
}

int main() {
  double worst = worst_difference<2, 2, 32, 64>();
  worst = std::fmax(worst, worst_difference<2, 4, 64, 32>());
  worst = std::fmax(worst, worst_difference<4, 12, 96, 6>());
  worst = std::fmax(worst, worst_difference<16, 16, 128, 128>());  // Qwen3.5-0.8B
  return worst <= 1e-5 ? 0 : 1;
}
