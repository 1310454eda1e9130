// An attempted step of an adaptive explicit method on one tensor: between two evaluations of the field, which is called
// back as a Python object, there is no Python. contnet_fast/ode/steppers/adaptive.py specifies it, value for value.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/step.h"

namespace contnet_fast {
namespace {

namespace py = pybind11;

using Terms = std::vector<std::pair<int64_t, double>>;
using Combine = std::vector<at::Tensor>(at::TensorList, at::TensorList, at::ArrayRef<double>);
using CombineError = std::tuple<std::vector<at::Tensor>, at::Tensor>(at::TensorList, at::TensorList,
                                                                     at::ArrayRef<double>, at::ArrayRef<double>, double,
                                                                     double);

at::Tensor combine(const at::Tensor& y, const std::vector<at::Tensor>& ks, const Terms& terms, double h) {
  if (terms.size() == 1) return at::add(y, ks[terms[0].first], h * terms[0].second);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("contnet_fast::rk_combine_cpu", "").typed<Combine>();
  std::vector<at::Tensor> rates;
  std::vector<double> coefficients;
  rates.reserve(terms.size());
  coefficients.reserve(terms.size());
  for (const auto& [j, c] : terms) {
    rates.push_back(ks[j]);
    coefficients.push_back(h * c);
  }
  return op.call(at::ArrayRef<at::Tensor>(y), rates, coefficients)[0];
}

// c h + s for each node, rounded as two operations; at c = 1 the number before the end of the step.
template <typename T>
void fill_times(T* to, const std::vector<double>& nodes, double s, double h, double s1, bool negate) {
  for (size_t j = 0; j < nodes.size(); ++j) {
    volatile T product = static_cast<T>(nodes[j]) * static_cast<T>(h);  // no fused multiplication and addition
    T time = product + static_cast<T>(s);
    if (nodes[j] == 1.0) {
      const T end = static_cast<T>(s1);
      time = std::nextafter(end, end - static_cast<T>(1));
    }
    to[j] = negate ? -time : time;
  }
}

py::object wrapped(const at::Tensor& x) { return py::reinterpret_steal<py::object>(THPVariable_Wrap(x)); }

// What does not change from step to step.
struct Stepper {
  py::object field;           // called with a time and the state
  py::object checked;         // makes a rate of what is none yet, or raises
  std::vector<double> nodes;  // of the stages after the first
  std::vector<Terms> rows;    // of the same stages
  Terms update;               // empty where the last row is the update
  std::vector<int64_t> used;  // stages that update and error read
  std::vector<double> weights, errors;
  double rtol, atol, sign;
  bool graph;

  // The state at the end of the step (None if the update is not known), the rates [[k], ...], and the norm of the error.
  py::tuple run(const py::object& state, const py::object& rate, double s, double h, double s1) const {
    const at::Tensor& y = THPVariable_Unpack(state.ptr());
    const double size = sign * h;
    std::vector<at::Tensor> ks{THPVariable_Unpack(rate.ptr())};
    ks.reserve(nodes.size() + 1);
    py::list rates(nodes.size() + 1);
    rates[0] = of_leaf(rate);
    std::vector<at::Tensor> times = times_of(y, s, h, s1);
    at::Tensor argument;
    for (size_t j = 0; j < nodes.size(); ++j) {
      argument = sum(y, ks, rows[j], size);
      py::object k = evaluate(wrapped(std::move(times[j])), wrapped(argument), y);
      ks.push_back(THPVariable_Unpack(k.ptr()));
      rates[j + 1] = of_leaf(k);
    }
    at::Tensor end = update.empty() ? argument : graph ? sum(y, ks, update, size) : at::Tensor();
    auto [found, norm] = error(y, ks, size);
    if (!end.defined()) end = std::move(found);
    return py::make_tuple(of_leaf(wrapped(end)), std::move(rates), norm);
  }

 private:
  // Below autograd unless there is a graph, which saves it from finding out.
  at::Tensor sum(const at::Tensor& y, const std::vector<at::Tensor>& ks, const Terms& terms, double size) const {
    if (graph) return combine(y, ks, terms, size);
    const at::AutoDispatchBelowADInplaceOrView below;
    return combine(y, ks, terms, size);
  }

  // Of the stages after the first, each without dimensions.
  std::vector<at::Tensor> times_of(const at::Tensor& y, double s, double h, double s1) const {
    const at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor times = at::empty({static_cast<int64_t>(nodes.size())}, y.options().requires_grad(false));
    if (y.scalar_type() == at::kFloat)
      fill_times(times.mutable_data_ptr<float>(), nodes, s, h, s1, sign < 0);
    else
      fill_times(times.mutable_data_ptr<double>(), nodes, s, h, s1, sign < 0);
    return times.unbind();
  }

  static py::list of_leaf(const py::object& x) {
    py::list found(1);
    found[0] = x;
    return found;
  }

  py::object evaluate(const py::object& time, const py::object& argument, const at::Tensor& y) const {
    py::object k = field(time, argument);
    if (THPVariable_Check(k.ptr())) {
      const at::Tensor& x = THPVariable_Unpack(k.ptr());
      if (x.scalar_type() == y.scalar_type() && x.sizes() == y.sizes() && x.device() == y.device()) return k;
    }
    return checked(k, argument);
  }

  std::pair<at::Tensor, double> error(const at::Tensor& y, const std::vector<at::Tensor>& ks, double size) const {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("contnet_fast::rk_combine_error_cpu", "").typed<CombineError>();
    const at::NoGradGuard no_graph;
    std::vector<at::Tensor> rates;
    std::vector<double> b, e;
    rates.reserve(used.size());
    b.reserve(used.size());
    e.reserve(used.size());
    for (size_t i = 0; i < used.size(); ++i) {
      rates.push_back(ks[used[i]]);
      b.push_back(size * weights[i]);
      e.push_back(size * errors[i]);
    }
    auto [ends, norm] = [&] {
      const at::AutoDispatchBelowADInplaceOrView
          below;  // autograd, which would find out that nothing is differentiated
      return op.call(at::ArrayRef<at::Tensor>(y), rates, b, e, rtol, atol);
    }();
    return {std::move(ends[0]), norm.item().toDouble()};
  }
};

}  // namespace

void register_step(py::module_& m) {
  py::class_<Stepper>(m, "Stepper", "An attempted step of an adaptive method on one tensor.")
      .def(py::init([](py::object field, py::object checked, std::vector<double> nodes, std::vector<Terms> rows,
                       Terms update, std::vector<int64_t> used, std::vector<double> weights, std::vector<double> errors,
                       double rtol, double atol, double sign, bool graph) {
             return Stepper{std::move(field),
                            std::move(checked),
                            std::move(nodes),
                            std::move(rows),
                            std::move(update),
                            std::move(used),
                            std::move(weights),
                            std::move(errors),
                            rtol,
                            atol,
                            sign,
                            graph};
           }),
           py::kw_only(), py::arg("field"), py::arg("checked"), py::arg("nodes"), py::arg("rows"), py::arg("update"),
           py::arg("used"), py::arg("weights"), py::arg("errors"), py::arg("rtol"), py::arg("atol"), py::arg("sign"),
           py::arg("graph"))
      .def("run", &Stepper::run, "(y1, rates, norm of the error) of a step from s to s1 = s + h.", py::arg("state"),
           py::arg("rate"), py::arg("s"), py::arg("h"), py::arg("s1"));
}

}  // namespace contnet_fast
