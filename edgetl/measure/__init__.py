"""How long, how much memory, how sure: processes that measure, rounds of them, and what is said of it. [no torch]"""
