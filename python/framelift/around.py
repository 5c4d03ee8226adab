"""What is recorded where a compiled callable is called within the caller's autocast (src/capture/around.h)."""

import torch


def autocast(target, devices, nesting):
    """The target within autocast on these devices, entered so often; it is off when this is called."""

    def call(*args, **kwargs):
        for _ in range(nesting):
            torch.autocast_increment_nesting()
        for device in devices:
            torch.set_autocast_enabled(device, True)
        try:
            return target(*args, **kwargs)
        finally:
            for device in devices:
                torch.set_autocast_enabled(device, False)
            for _ in range(nesting):
                if torch.autocast_decrement_nesting() == 0:
                    torch.clear_autocast_cache()

    return call
