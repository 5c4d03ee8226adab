/* Without a GPU: a clear reason, the same one each time. With one: versions and a device. */
#include "cuda/load.h"

#include "base/test.h"

FL_TEST(load_tells_what_is_missing_or_works) {
  const char *folders[] = {"/nonexistent", NULL};
  const fl_cuda_api *api = NULL;
  fl_status first = fl_cuda_load(folders, &api);
  if (!first) {
    FL_CHECK(api->device_count > 0 && api->driver_version > 0 && api->cuLaunchKernelEx && api->cudnnBackendExecute);
    FL_CHECK_FAILS(fl_cuda_check(1, "a call"), FL_INTERNAL, "a call: CUDA_ERROR_INVALID_VALUE");
    return;
  }
  FL_CHECK(fl_status_code(first) == FL_UNSUPPORTED && api == NULL);
  FL_CHECK(strstr(fl_status_message(first), "CUDA: ") == fl_status_message(first));
  fl_status second = fl_cuda_load(NULL, &api);
  FL_CHECK(strcmp(fl_status_message(first), fl_status_message(second)) == 0);
  fl_status_free(first);
  fl_status_free(second);
}

FL_TEST_MAIN(FL_RUN(load_tells_what_is_missing_or_works))
