/* What this processor can do. Kernels are chosen by it at run time. */
#ifndef FL_BASE_CPU_H
#define FL_BASE_CPU_H

typedef enum fl_isa {
  FL_ISA_PORTABLE = 0,
  FL_ISA_AVX2,        /* AVX2 + FMA + F16C */
  FL_ISA_AVX512,      /* F + BW + DQ + VL */
  FL_ISA_AVX512_BF16, /* the above + BF16 + VNNI */
  FL_ISA_COUNT
} fl_isa;

/* The best level of this machine, lowered by FRAMELIFT_ISA=portable|avx2|avx512|avx512_bf16. */
fl_isa fl_cpu_isa(void);
const char *fl_isa_name(fl_isa isa);
/* Tests: forces a level (not above the machine's); returns the one now in force. */
fl_isa fl_cpu_force_isa(fl_isa isa);

/* Data cache sizes in bytes, with sensible defaults where the machine does not tell. */
long fl_cpu_l1d(void);
long fl_cpu_l2(void);
long fl_cpu_l3(void);

#endif
