"""Models that the benchmark's tests name as module:function."""

import os
import signal

import torch


def tiny():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 2),
    )
    return model.eval(), (torch.randn(1, 3, 8, 8),)


def crashing():
    os.kill(os.getpid(), signal.SIGSEGV)
