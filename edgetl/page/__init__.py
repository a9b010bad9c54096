"""The report as one page for a browser, with nothing loaded from elsewhere. [no torch]"""
