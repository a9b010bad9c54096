"""Where the time goes, and where the error comes from, in the terms of the torch network. [no torch]"""
