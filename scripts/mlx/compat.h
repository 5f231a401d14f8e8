// Force-included before every file of mlx-c when it is compiled for Linux; two gaps, nothing else.
#pragma once

// 1. GCC 12 has no <format>. mlx-c uses std::format for five error messages with plain "{}" fields only.
#ifdef __cplusplus
#include <version>
#if __has_include(<format>) && defined(__cpp_lib_format)
#include <format>
#else
#include <sstream>
#include <string>
#include <string_view>
namespace std {
template <class... Fields>
string format(string_view pattern, const Fields&... fields) {
  ostringstream text;
  auto put = [&](const auto& field) {
    const auto at = pattern.find("{}");
    text << pattern.substr(0, at) << field;
    pattern.remove_prefix(at == string_view::npos ? pattern.size() : at + 2);
  };
  (put(fields), ...);
  text << pattern;
  return text.str();
}
}  // namespace std
#endif
#endif

// 2. mlx-c declares its half types on Arm only. They cross its interface by pointer alone, so any type of two bytes
//    keeps the ABI; these two make bindgen's names the same as on a Mac.
#if !defined(__aarch64__)
#define HAS_FLOAT16
#define HAS_BFLOAT16
typedef _Float16 float16_t;
typedef unsigned short bfloat16_t;
#endif
