// The options of an optimizer, the enumerations that they and calls use, and its counters.
#include <pybind11/native_enum.h>

#include <cstddef>

#include "adamas/optimizer.hpp"
#include "bindings/register.hpp"

namespace py = pybind11;

namespace adamas::bindings {
namespace {

template <class Enum, std::size_t count>
void add_enum(py::module_& module, const char* name, const char* const (&values)[count]) {
  py::native_enum<Enum> added(module, name, "enum.Enum");
  for (std::size_t k = 0; k < count; ++k) added.value(values[k], static_cast<Enum>(k));
  added.finalize();
}

struct Option {
  const char* name;
  bool decides;   // must stay as it is for later steps to have the same bits
  bool of_group;  // groups may differ in it
};

constexpr Option kOptions[] = {
#define ADAMAS_ADD(name, decides, of_group) {#name, decides, of_group},
    ADAMAS_OPTIONS(ADAMAS_ADD)
#undef ADAMAS_ADD
};

py::tuple names_of_those(bool Option::* has) {
  py::list names;
  for (const Option& option : kOptions) {
    if (option.*has) names.append(option.name);
  }
  return py::tuple(names);
}

}  // namespace

void register_options(py::module_& module) {
  add_enum<Numerics>(module, "Numerics", kNumericsNames);
  add_enum<StateKind>(module, "StateKind", kStateKindNames);
  add_enum<RowPolicy>(module, "RowPolicy", kRowPolicyNames);
  add_enum<Reduction>(module, "Reduction", kReductionNames);
  add_enum<EpsilonPlacement>(module, "EpsilonPlacement", kEpsilonPlacementNames);
  add_enum<StateFormat>(module, "StateFormat", kStateFormatNames);
  py::class_<AdamConfig> config(module, "AdamConfig");
  config.def(py::init<>());
  config.def("copy", [](const AdamConfig& self) { return self; });
#define ADAMAS_BIND(name, decides, of_group) config.def_readwrite(#name, &AdamConfig::name);
  ADAMAS_OPTIONS(ADAMAS_BIND)
#undef ADAMAS_BIND
  module.attr("DECIDING_OPTIONS") = names_of_those(&Option::decides);
  module.attr("GROUP_OPTIONS") = names_of_those(&Option::of_group);
  module.def("default_group", &default_group, py::arg("config"));
  py::class_<Counters>(module, "Counters")
      .def(py::init<>())
      .def_readwrite("global_step", &Counters::global_step)
      .def_readwrite("skipped_steps", &Counters::skipped_steps)
      .def_readwrite("loss_scale", &Counters::loss_scale)
      .def_readwrite("last_grad_norm", &Counters::last_grad_norm)
      .def_readwrite("last_step_skipped", &Counters::last_step_skipped);
}

}  // namespace adamas::bindings
