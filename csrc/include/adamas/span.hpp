// A pointer and a length (C++17 has no std::span).
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "adamas/cpp17.hpp"

namespace adamas {

template <class T>
struct Span {
  T* data = nullptr;
  std::size_t size = 0;

  constexpr Span() = default;
  constexpr Span(T* first, std::size_t count) : data(first), size(count) {}

  // All of a vector or array, which must live as long as the span is used.
  template <class Container, class = std::enable_if_t<std::is_convertible_v<
                                 decltype(std::declval<Container&>().data()), T*>>>
  constexpr Span(Container&& items) : data(items.data()), size(items.size()) {}

  // An array of C.
  template <std::size_t count>
  constexpr Span(T (&items)[count]) : data(items), size(count) {}

  constexpr T* begin() const { return data; }
  constexpr T* end() const { return data + size; }
  constexpr T& operator[](std::size_t i) const { return data[i]; }
};

}  // namespace adamas
