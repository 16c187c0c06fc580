// Says what is wrong where a compiler does not speak C++17, before it finds a hundred other errors.
#pragma once

#if !defined(__cplusplus) || __cplusplus < 201703L
#error "adamas needs C++17: compile with -std=c++17, or use adamas.h, which is C."
#endif
