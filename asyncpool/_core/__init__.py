"""The machinery of a pool, one idea per file. Nothing here is public: users see the modules beside this folder."""
