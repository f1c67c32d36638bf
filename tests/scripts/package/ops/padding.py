def same(k):
    return k // 2
