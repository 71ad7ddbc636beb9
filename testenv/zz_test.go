package testenv
import ("testing";"time";"github.com/vxbpf/vxbpf/loader/config")
func TestZZ(t *testing.T){
 l,_ := plan("x", DefaultSpec())
 b := l.Hosts[0].Config(l.Spec)
 c, err := config.Parse("x.yaml", b)
 t.Logf("%+v %v\n%s", c != nil, err, b)
 s := time.Now(); lab, err := Up(t.Context(), DefaultSpec(), Options{Prefix:"zz-"}); t.Log(time.Since(s), err); s=time.Now(); t.Log(lab.Down(), time.Since(s))
}
