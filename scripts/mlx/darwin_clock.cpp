// mlx-rs seeds its random numbers from a clock that only Darwin has.
#include <chrono>
#include <cstdint>

extern "C" uint64_t mach_approximate_time() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}
