/* einsum of one or two operands: permutes, a matrix product (or a product of elements), a permute. */
#include <string.h>

#include "lower/convert.h"

/* An operand and the letter of each of its axes. */
typedef struct term {
  fl_vid v;
  char axes[FL_MAX_RANK + 1];
} term;

static int find_axis(const char *axes, char letter) {
  const char *at = letter ? strchr(axes, letter) : NULL;
  return at ? (int)(at - axes) : -1;
}

/* "ij,jk->ik" without blanks into the letters of each operand and of the result. */
static void parse(fl_cv *c, const char *equation, term *terms, int n, char *out) {
  char *ends[3] = {n > 0 ? terms[0].axes : out, n > 1 ? terms[1].axes : out, out};
  int side = 0, len = 0;
  for (const char *at = equation; *at && fl_cv_ok(c); at++) {
    if (*at == ' ') continue;
    if (*at == ',' || (*at == '-' && at[1] == '>')) {
      bool arrow = *at == '-';
      at += arrow;
      side++;
      len = 0;
      if (arrow != (side == n) || side > n) fl_cv_decline(c, "equation %s for %d operands", equation, n);
      continue;
    }
    bool letter = (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z');
    char *axes = side == n ? out : ends[side];
    if (!letter || len == FL_MAX_RANK || find_axis(axes, *at) >= 0)
      fl_cv_decline(c, "equation %s", equation);
    else
      axes[len++] = *at;
  }
  if (side != n) fl_cv_decline(c, "equation %s names no result", equation);
}

/* Sums over the axes that neither `keep` nor `keep2` names. */
static void sum_others(fl_cv *c, term *t, const char *keep, const char *keep2) {
  int64_t axes[FL_MAX_RANK];
  int n = 0, left = 0;
  for (int i = 0; t->axes[i]; i++) {
    if (find_axis(keep, t->axes[i]) < 0 && find_axis(keep2, t->axes[i]) < 0)
      axes[n++] = i;
    else
      t->axes[left++] = t->axes[i];
  }
  t->axes[left] = 0;
  if (n) t->v = fl_cv_reduce(c, FL_OP_SUM, t->v, axes, n, false);
}

/* Brings the axes into the order of `want`, which names the same letters. */
static fl_vid in_order(fl_cv *c, const term *t, const char *want) {
  int perm[FL_MAX_RANK] = {0};
  for (int i = 0; want[i] && fl_cv_ok(c); i++) {
    perm[i] = find_axis(t->axes, want[i]);
    if (perm[i] < 0) fl_cv_decline(c, "axis %c of the result is in no operand", want[i]);
  }
  return fl_cv_permute(c, t->v, perm);
}

/* The letters of `of` that are or are not in `a` and in `b`. */
static void letters(char *out, const char *of, const char *a, bool in_a, const char *b, bool in_b) {
  for (; *of; of++)
    if ((find_axis(a, *of) >= 0) == in_a && (find_axis(b, *of) >= 0) == in_b) *out++ = *of;
  *out = 0;
}

static int64_t sizes(fl_cv *c, const term *t, const char *axes, int64_t *dims, int *rank) {
  int64_t total = 1;
  fl_type type = fl_cv_type(c, t->v);
  for (; *axes && fl_cv_ok(c); axes++) {
    int64_t d = type.dims[find_axis(t->axes, *axes)];
    total *= d;
    if (dims && *rank < FL_MAX_RANK) dims[(*rank)++] = d;
  }
  return total;
}

static fl_vid product(fl_cv *c, term *a, term *b, const char *out) {
  char batch[FL_MAX_RANK + 1], rows[FL_MAX_RANK + 1], columns[FL_MAX_RANK + 1], inner[FL_MAX_RANK + 1];
  char order_a[4 * FL_MAX_RANK], order_b[4 * FL_MAX_RANK], order[4 * FL_MAX_RANK];
  sum_others(c, a, b->axes, out);
  sum_others(c, b, a->axes, out);
  letters(batch, a->axes, b->axes, true, out, true);
  letters(rows, a->axes, b->axes, false, out, true);
  letters(columns, b->axes, a->axes, false, out, true);
  letters(inner, a->axes, b->axes, true, out, false);
  snprintf(order_a, sizeof order_a, "%s%s%s", batch, rows, inner);
  snprintf(order_b, sizeof order_b, "%s%s%s", batch, columns, inner);
  snprintf(order, sizeof order, "%s%s%s", batch, rows, columns);
  int64_t dims[FL_MAX_RANK];
  int rank = 0;
  int64_t n = sizes(c, a, batch, dims, &rank), m = sizes(c, a, rows, dims, &rank), k = sizes(c, a, inner, NULL, NULL);
  int64_t p = sizes(c, b, columns, dims, &rank);
  if (sizes(c, b, batch, NULL, NULL) != n || sizes(c, b, inner, NULL, NULL) != k)
    fl_cv_decline(c, "axes of 1 that broadcast");
  if (strlen(order) > FL_MAX_RANK) fl_cv_decline(c, "rank above %d", FL_MAX_RANK);
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  fl_vid x = in_order(c, a, order_a), y = in_order(c, b, order_b), r;
  if (*inner) {
    x = fl_cv_reshape(c, x, 3, (int64_t[]){n, m, k});
    y = fl_cv_reshape(c, y, 3, (int64_t[]){n, p, k});
    r = fl_cv_matmul(c, x, y, true, FL_NO_VALUE, FL_NO_VALUE);
  } else {
    x = fl_cv_reshape(c, x, 3, (int64_t[]){n, m, 1});
    y = fl_cv_reshape(c, y, 3, (int64_t[]){n, 1, p});
    r = fl_cv_binary(c, FL_OP_MUL, x, y);
  }
  term result = {.v = fl_cv_reshape(c, r, rank, dims)};
  memcpy(result.axes, order, strlen(order) + 1);
  return in_order(c, &result, out);
}

void fl_convert_einsum(fl_cv *c) {
  int n;
  fl_vid *xs = fl_cv_args(c, "tensors", &n);
  term terms[2] = {{0}};
  char out[FL_MAX_RANK + 1] = "";
  if (n != 1 && n != 2) fl_cv_decline(c, "%d operands", n);
  if (!fl_cv_ok(c)) return;
  for (int i = 0; i < n; i++) terms[i].v = xs[i];
  parse(c, fl_cv_string(c, "equation", ""), terms, n, out);
  for (int i = 0; i < n; i++)
    if ((int)strlen(terms[i].axes) != fl_cv_type(c, xs[i]).rank) fl_cv_decline(c, "operand %d has another rank", i);
  if (!fl_cv_ok(c)) return;
  if (n == 2) {
    fl_cv_result(c, 0, product(c, &terms[0], &terms[1], out));
    return;
  }
  sum_others(c, &terms[0], out, out);
  fl_cv_result(c, 0, in_order(c, &terms[0], out));
}
