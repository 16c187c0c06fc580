// Parameters, gradients and row indices of any range that lies in one piece: a std::vector, a
// std::array, an array of C, a std::span, or what else has data() and size().
//
//   std::vector<float> weight(1000), weight_grad(1000);
//   float bias[10] = {}, bias_grad[10] = {};
//   const adamas::ParameterSpec parameters[] = {adamas::parameter_of(weight, 100),
//                                               adamas::parameter_of(bias)};
//   const adamas::Gradient grads[] = {adamas::gradient_of(weight_grad),
//                                     adamas::gradient_of(bias_grad)};
//
// Nothing is copied: a range must live, and stay where it is, as long as what is made of it.  One
// that ends with the expression is refused by the compiler, and so are types of elements that
// adamas does not know.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <type_traits>
#include <utility>
#if __has_include(<stdfloat>)
#include <stdfloat>
#endif

#include "adamas/cpp17.hpp"
#include "adamas/span.hpp"
#include "adamas/types.hpp"

namespace adamas {

// The element type that a type of C++ is.  A type of 16 bits of another library is made known by
//
//   template <>
//   struct adamas::DTypeOf<Half> {
//     static constexpr DType kValue = DType::float16;
//   };
template <class T>
struct DTypeOf {};
template <>
struct DTypeOf<float> {
  static constexpr DType kValue = DType::float32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType kValue = DType::float64;
};
#ifdef __STDCPP_FLOAT16_T__
template <>
struct DTypeOf<std::float16_t> {
  static constexpr DType kValue = DType::float16;
};
#endif
#ifdef __STDCPP_BFLOAT16_T__
template <>
struct DTypeOf<std::bfloat16_t> {
  static constexpr DType kValue = DType::bfloat16;
};
#endif

namespace detail {

// `first_length`: of the first axis, or 1 if the range has but one.
template <class T>
struct View {
  T* data;
  std::int64_t count;
  std::int64_t first_length;
};

template <class Range>
auto view_of(Range& range) -> View<std::remove_pointer_t<decltype(std::data(range))>> {
  return {std::data(range), static_cast<std::int64_t>(std::size(range)), 1};
}

template <class T>
View<T> view_of(const Span<T>& span) {
  return {span.data, static_cast<std::int64_t>(span.size), 1};
}

// Of several axes, too, whose elements follow each other.
template <class T, std::size_t length>
auto view_of(T (&array)[length]) -> View<std::remove_all_extents_t<T>> {
  using Element = std::remove_all_extents_t<T>;
  constexpr auto kCount = static_cast<std::int64_t>(sizeof(array) / sizeof(Element));
  return {reinterpret_cast<Element*>(&array), kCount,
          std::is_array_v<T> ? static_cast<std::int64_t>(length) : 1};
}

template <class Range, class = void>
struct HasView : std::false_type {};
template <class Range>
struct HasView<Range, std::void_t<decltype(detail::view_of(std::declval<Range&>()))>>
    : std::true_type {};

template <class T, class = void>
struct HasDType : std::false_type {};
template <class T>
struct HasDType<T, std::void_t<decltype(DTypeOf<T>::kValue)>> : std::true_type {};

// Whether elements may outlive the range: one that owns them has const ones if it is const.
template <class Range>
constexpr bool is_borrowed() {
  using Plain = std::remove_const_t<Range>;
  return std::is_same_v<decltype(detail::view_of(std::declval<Plain&>())),
                        decltype(detail::view_of(std::declval<const Plain&>()))>;
}

template <class Range>
auto checked_view(Range&& range) {
  using Plain = std::remove_reference_t<Range>;
  static_assert(HasView<Plain>::value,
                "adamas: a range must lie in one piece, and have data() and size()");
  static_assert(std::is_lvalue_reference_v<Range> || is_borrowed<Plain>(),
                "adamas: this range ends with the expression; give it a name");
  return detail::view_of(range);
}

template <class T>
constexpr DType dtype_of() {
  using Plain = std::remove_cv_t<T>;
  static_assert(HasDType<Plain>::value,
                "adamas: elements must be float, double or a type for which adamas::DTypeOf is "
                "specialised");
  return DTypeOf<Plain>::kValue;
}

}  // namespace detail

// A parameter, updated in place.  `rows`: the length of its first axis, which sparse gradients and
// `centralize` need; 0: that of an array of C with several axes, else 1.
template <class Range>
ParameterSpec parameter_of(Range&& values, std::int64_t rows = 0) {
  const auto view = detail::checked_view(std::forward<Range>(values));
  using Element = std::remove_pointer_t<decltype(view.data)>;
  static_assert(!std::is_const_v<Element>,
                "adamas: a parameter is updated in place, so its elements must not be const");
  ParameterSpec spec;
  spec.data = view.data;
  spec.count = view.count;
  spec.dtype = detail::dtype_of<Element>();
  spec.rows = rows == 0 ? view.first_length : rows;
  return spec;
}

// A dense gradient; its count is checked by each step.
template <class Range>
Gradient gradient_of(Range&& values) {
  const auto view = detail::checked_view(std::forward<Range>(values));
  Gradient grad;
  grad.values = view.data;
  grad.count = view.count;
  grad.dtype = detail::dtype_of<std::remove_pointer_t<decltype(view.data)>>();
  return grad;
}

// A sparse gradient: a row of `values` for each of `rows`, which must live as long.
template <class Range>
Gradient gradient_of(Range&& values, const RowIndices& rows) {
  Gradient grad = gradient_of(std::forward<Range>(values));
  grad.rows = &rows;
  return grad;
}
template <class Range>
Gradient gradient_of(Range&& values, const RowIndices&& rows) = delete;

// Indices of rows, integers of 32 or 64 bits.  Those that an unsigned type alone can hold are
// refused by the step, as all that are too large.
template <class Range>
RowIndices rows_of(Range&& indices) {
  const auto view = detail::checked_view(std::forward<Range>(indices));
  using Index = std::remove_pointer_t<decltype(view.data)>;
  static_assert(std::is_integral_v<Index> && (sizeof(Index) == 4 || sizeof(Index) == 8),
                "adamas: row indices must be integers of 32 or 64 bits");
  return {view.data, view.count, sizeof(Index) == 8};
}

}  // namespace adamas
