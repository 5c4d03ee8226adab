/* Numbers drawn from Python's generators. Most of them decide nothing: layers drop out in training alone, and the number is drawn
 * before it is asked whether that is so. Such a draw is an effect, done again by each replay, and the number, with what is
 * calculated from it, is not looked at. Where it is, the recording ends, and the next one has a break there. */
#include "capture/rec.h"

static bool is_number(PyObject *o) { return PyFloat_CheckExact(o) || PyLong_CheckExact(o); }

static bool is_drawn(const fl_rec *r, PyObject *o) { return r->drawn.len && fl_ptrmap_get(&r->drawn, o, NULL); }

static void note(fl_rec *r, PyObject *number) {
  if (fl_rec_keep(r, number) && !fl_ptrmap_set(&r->drawn, number, 0)) fl_rec_give_up(r, "out of memory", "");
}

bool fl_rec_may_draw(fl_rec *r, PyObject *generator) {
  return r && !r->gave_up && !r->paused && !fl_rec_is_fresh(r, generator) && !fl_rec_is_passing(r, generator);
}

void fl_rec_draw(fl_rec *r, PyObject *callable, PyObject *self, PyObject *number) {
  fl_draw d = {callable, self};
  if (!PyFloat_CheckExact(number)) {
    fl_rec_give_up(r, "unknown C function", "a draw that gives no float");
    return;
  }
  bool ok = fl_rec_keep(r, callable) && (!self || fl_rec_keep(r, self)) && FL_PUSH(&r->draws, d);
  if (!ok) fl_rec_give_up(r, "out of memory", "");
  r->drew = callable;
  note(r, number);
}

bool fl_rec_draws_from(fl_rec *r, PyObject *a, PyObject *b) {
  return r && !r->gave_up && !r->paused && is_number(a) && is_number(b) && (is_drawn(r, a) || is_drawn(r, b));
}

void fl_rec_drawn(fl_rec *r, PyObject *number) {
  if (!number) return;
  if (PyFloat_CheckExact(number))
    note(r, number);
  else
    fl_rec_give_up(r, "a random number is used", Py_TYPE(number)->tp_name);
}

bool fl_rec_sees_drawn(fl_rec *r, PyObject *o) {
  if (!is_drawn(r, o)) return false;
  fl_rec_give_up(r, "a random number is used", "");
  if (r->drew) Py_XSETREF(r->why.blame, Py_NewRef(r->drew));
  return true;
}

void fl_rec_settle_draws(fl_rec *r, PyObject *all) {
  for (size_t i = 0; i < r->draws.len && !r->gave_up; i++) {
    fl_effect e = {.kind = FL_EFFECT_DRAW, .obj = r->draws.data[i].callable, .key = r->draws.data[i].self};
    if (PyList_Append(all, Py_None) < 0 || !FL_PUSH(&r->writes->list, e)) fl_rec_give_up(r, "out of memory", "");
    PyErr_Clear();
  }
}
