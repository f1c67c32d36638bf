from .padding import same
