// adamas._core.RepeatedCall: functional.adam as it is called again and again, from one place with
// the same options.
//
// A function of Python with that many keywords takes as long as a small step.  This callable wraps
// it, and remembers of the last call of the thread the names of its keywords, the objects that came
// as options, and the AdamConfig that the function has made of them.  Where all are the same
// objects again, it calls update() itself; else, and whenever update() does not know an array, the
// function.
#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "bindings/register.hpp"
#include "bindings/update.hpp"

#include <structmember.h>

namespace py = pybind11;

namespace adamas::bindings {
namespace {

struct RepeatedCall {
  PyObject head;
  PyObject* attributes;  // what functools.update_wrapper copies
  PyObject* function;
  vectorcallfunc call;
};

// Keywords that are not options: where each goes among the arguments of update().
enum Place : std::uint8_t { kOption, kPlaceOfVhat, kPlaceOfMaster, kPlaceOfEma, kPlaceOfArgument };
struct Keyword {
  const char* name;
  Place place;
  std::size_t argument;
};
constexpr Keyword kKeywords[] = {
    {"steps", kPlaceOfArgument, kSteps},
    {"learning_rate", kPlaceOfArgument, kLearningRate},
    {"weight_decay", kPlaceOfArgument, kWeightDecay},
    {"grad_centralization", kPlaceOfArgument, kCentralize},
    {"keys", kPlaceOfArgument, kKeys},
    {"vhat", kPlaceOfVhat, 2},
    {"master", kPlaceOfMaster, 3},
    {"ema", kPlaceOfEma, 4},
};
constexpr py::ssize_t kFewestPositional = 4;  // params, grads, moment1, moment2
constexpr py::ssize_t kMostPositional = 5;    // and vhat
constexpr std::size_t kStateLists = 6;

Keyword keyword_of(PyObject* name) {
  for (const Keyword& known : kKeywords) {
    if (PyUnicode_CompareWithASCIIString(name, known.name) == 0) return known;
  }
  return {nullptr, kOption, 0};
}

// Whether two tuples hold the same objects.  A call with more than 13 keywords makes a new one of
// its names each time.
bool holds_same(PyObject* known, PyObject* given) {
  if (known == given) return true;
  if (known == nullptr || PyTuple_GET_SIZE(known) != PyTuple_GET_SIZE(given)) return false;
  const auto* names = reinterpret_cast<PyTupleObject*>(known)->ob_item;
  return std::equal(names, names + PyTuple_GET_SIZE(given),
                    reinterpret_cast<PyTupleObject*>(given)->ob_item);
}

// The last call of a thread.
struct Known {
  py::object function;
  py::object names;
  py::ssize_t positional = 0;
  std::vector<Keyword> keywords;
  std::vector<py::object> values;  // by keyword: of an option; of a state, what tells if it is None
  bool has_vhat = false;           // as a positional argument
  py::object config;               // null: nothing is known

  bool is(PyObject* called, PyObject* const* args, py::ssize_t count, PyObject* given) const {
    if (!config || function.ptr() != called || positional != count ||
        !holds_same(names.ptr(), given) ||
        has_vhat != (count == kMostPositional && args[kMostPositional - 1] != Py_None)) {
      return false;
    }
    for (std::size_t k = 0; k < keywords.size(); ++k) {
      PyObject* const value = args[static_cast<std::size_t>(count) + k];
      const Place place = keywords[k].place;
      if (place == kPlaceOfArgument) continue;
      const bool is_same =
          place == kOption ? value == values[k].ptr() : (value == Py_None) == values[k].is_none();
      if (!is_same) return false;
    }
    return true;
  }

  void keep(PyObject* called, PyObject* const* args, py::ssize_t count, PyObject* given,
            PyObject* used) {
    config = py::object();
    function = py::reinterpret_borrow<py::object>(called);
    names = py::reinterpret_borrow<py::object>(given);
    positional = count;
    has_vhat = count == kMostPositional && args[kMostPositional - 1] != Py_None;
    keywords.clear();
    values.clear();
    for (py::ssize_t k = 0; k < PyTuple_GET_SIZE(given); ++k) {
      PyObject* const value = args[count + k];
      keywords.push_back(keyword_of(PyTuple_GET_ITEM(given, k)));
      const Place place = keywords.back().place;
      // Arrays are not kept alive: that there is one is what counts.
      values.push_back(place == kOption   ? py::reinterpret_borrow<py::object>(value)
                       : value == Py_None ? py::object(py::none())
                                          : py::object(py::bool_(true)));
    }
    config = py::reinterpret_borrow<py::object>(used);
  }
};

// Never freed: a thread may end while the interpreter is gone.
Known& known() {
  thread_local Known* const own = new Known;
  return *own;
}

PyObject* call_again(const Known& call, PyObject* const* args, py::ssize_t count) {
  static PyObject* const kNoDecay = PyFloat_FromDouble(0.0);
  static PyObject* const kUsualRate = PyFloat_FromDouble(1e-3);
  std::array<PyObject*, kStateLists> states;
  states.fill(Py_None);
  states[0] = args[2];
  states[1] = args[3];
  if (count == kMostPositional) states[2] = args[4];
  PyObject* arguments[kArguments] = {call.config.ptr(), args[0],  args[1],  nullptr, nullptr,
                                     kUsualRate,        kNoDecay, Py_False, Py_None};
  for (std::size_t k = 0; k < call.keywords.size(); ++k) {
    const Keyword& keyword = call.keywords[k];
    PyObject* const value = args[static_cast<std::size_t>(count) + k];
    if (keyword.place == kPlaceOfArgument) arguments[keyword.argument] = value;
    if (keyword.place != kPlaceOfArgument && keyword.place != kOption) {
      states[keyword.argument] = value;
    }
  }
  return update(arguments, states.data());
}

PyObject* call(PyObject* self, PyObject* const* args, std::size_t flags, PyObject* names) {
  auto* repeated = reinterpret_cast<RepeatedCall*>(self);
  const py::ssize_t count = PyVectorcall_NARGS(flags);
  const bool fits = names != nullptr && count >= kFewestPositional && count <= kMostPositional;
  Known& last = known();
  if (fits && last.is(repeated->function, args, count, names)) {
    PyObject* const made = call_again(last, args, count);
    if (made != Py_NotImplemented) return made;
    Py_DECREF(made);
  }
  last_config() = nullptr;
  PyObject* const made = PyObject_Vectorcall(repeated->function, args, flags, names);
  if (made != nullptr && fits && last_config() != nullptr && PyBool_Check(made)) {
    last.keep(repeated->function, args, count, names, last_config());
  }
  return made;
}

PyObject* show(PyObject* self) {
  return PyObject_Repr(reinterpret_cast<RepeatedCall*>(self)->function);
}

void destroy(PyObject* self) {
  auto* repeated = reinterpret_cast<RepeatedCall*>(self);
  PyTypeObject* const type = Py_TYPE(self);
  Py_XDECREF(repeated->function);
  Py_XDECREF(repeated->attributes);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject* function = nullptr;
  if (PyArg_ParseTuple(args, "O", &function) == 0) return nullptr;
  auto* self = reinterpret_cast<RepeatedCall*>(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  Py_INCREF(function);
  self->function = function;
  self->call = call;
  return reinterpret_cast<PyObject*>(self);
}

PyMemberDef kMembers[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(RepeatedCall, call), READONLY, nullptr},
    {"__dictoffset__", T_PYSSIZET, offsetof(RepeatedCall, attributes), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyGetSetDef kProperties[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot kSlots[] = {{Py_tp_new, reinterpret_cast<void*>(make)},
                        {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
                        {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                        {Py_tp_repr, reinterpret_cast<void*>(show)},
                        {Py_tp_members, kMembers},
                        {Py_tp_getset, kProperties},
                        {0, nullptr}};

PyType_Spec kSpec = {"adamas._core.RepeatedCall", sizeof(RepeatedCall), 0,
                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL, kSlots};

}  // namespace

void register_repeated_call(py::module_& module) {
  module.attr("RepeatedCall") = py::reinterpret_steal<py::object>(PyType_FromSpec(&kSpec));
}

}  // namespace adamas::bindings
