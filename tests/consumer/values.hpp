// What the programs that are compared with Python share: their files of values, and errors.
#pragma once

#include <adamas/adamas.hpp>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

inline void require(const adamas::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

inline std::vector<float> read(const char* path, std::size_t count) {
  std::vector<float> values(count);
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(values.data()),
            static_cast<std::streamsize>(count * sizeof(float)));
  if (!file) std::exit(2);
  return values;
}

inline void write(std::ofstream& file, const void* data, std::size_t nbytes) {
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(nbytes));
}
