from .net import SmallNet
