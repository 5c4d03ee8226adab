/* The files of src/cuda/kernels as strings, made by the build (tools/embed.cmake). */
#ifndef FL_CUDA_SOURCES_H
#define FL_CUDA_SOURCES_H

extern const char fl_cuda_source_prelude[], fl_cuda_source_rows[], fl_cuda_source_reduce[], fl_cuda_source_compare[];
extern const char fl_cuda_source_flash[], fl_cuda_source_flash_combine[], fl_cuda_source_attention_tile[],
    fl_cuda_source_attention_row[];
extern const char fl_cuda_source_depthwise[], fl_cuda_source_conv_mma[], fl_cuda_source_conv_few[],
    fl_cuda_source_conv_image[], fl_cuda_source_conv_finish[], fl_cuda_source_pool[], fl_cuda_source_image_mean[],
    fl_cuda_source_image_mean_end[];

#endif
